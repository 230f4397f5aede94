-- Since which row the records of a partition follow one another without a repetition, up to its head: there an offset
-- follows from counting rows. `run_offset` is the head that this was said of; a head moved by an older version has another.
ALTER TABLE publisher_heads
    ADD COLUMN run_offset bigint,
    ADD COLUMN run_epoch integer,
    ADD COLUMN run_xid xid8,
    ADD COLUMN run_seq bigint;
