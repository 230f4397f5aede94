"""What-if: history under other prices, computed again from recorded usage; changes nothing."""
