"""What the operator may set: `<data>/config.toml`, overridden by the environment, then by flags.

`a.b` in the file is `A_B` in the environment. Must not start, open or connect anything.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from decimal import Decimal
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal, cast, get_type_hints

import msgspec

from schemas.errors import SiteProblem

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
"""A TCP port; 0 lets the system choose one."""
Positive = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
DecimalText = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,9}(\.[0-9]{1,6})?$")]
Texts = tuple[str, ...]
"""A list in the file; in the environment one text, apart by commas."""

DATA_DIR_VARIABLE = "SUANPAN_DATA_DIR"


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["logfmt", "json"] = "logfmt"


class DatabaseSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Outside PostgreSQL: the application's role, and the owner's for migrations."""

    url: str | None = None
    owner_url: str | None = None

    def __repr__(self) -> str:
        return "DatabaseSettings(…)"


class RedisSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    url: str | None = None

    def __repr__(self) -> str:
        return "RedisSettings(…)"


class KafkaSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    bootstrap_servers: str | None = None
    replication_factor: Annotated[int, msgspec.Meta(ge=1, le=32)] = 1


class RelaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    body_bytes_max: Positive = 20 * 1024 * 1024
    connect_timeout_s: Seconds = 10
    first_byte_timeout_s: Seconds = 120
    idle_timeout_s: Seconds = 120
    keepalive_s: Seconds = 10
    """Upstream silence after which a stream's client gets a comment."""
    cooldown_s: Seconds = 30
    """How long a channel rests after failures."""


class HttpSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    trusted_proxies: Texts = ()
    """Networks (CIDR) of the proxies in front of us: only their forwarding headers count."""
    header_timeout_s: Seconds = 15
    """From the first byte of a request, or a connection's beginning, to the end of its head."""
    header_bytes_max: Positive = 32 * 1024
    waiting_connections_max: Positive = 4_096
    """Connections with no request under way; never more than half of the files we may open."""


class AttemptSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often somebody may try what can be guessed or made in numbers."""

    code_guesses: Positive = 10
    """Unknown codes per account, and per address."""
    code_window_s: Seconds = 600
    login_failures: Positive = 10
    """Wrong passwords for one name from one address."""
    login_address_failures: Positive = 100
    """Wrong passwords from one address, whatever the name."""
    login_window_s: Seconds = 600
    registrations: Positive = 5
    """New people per address."""
    registration_window_s: Seconds = 3_600


class BillingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    cny_per_usd: DecimalText = "7.3"
    """The rate at which the USD billing routes answer; a decimal string, no float near money."""


class AccountSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    initial_points: DecimalText = "0"
    """What every new account is given."""


class InvitationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Points for a registration on somebody's invitation, beside what every account is given."""

    inviter_points: DecimalText = "0"
    invited_points: DecimalText = "0"


class LeaseSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    seconds: Seconds = 30
    renew_seconds: Seconds = 10
    sweep_seconds: Seconds = 5


class DemoSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    enabled: bool = True


class EmbeddedSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    place: str = "/var/lib/suanpan"
    """Used as root when the data folder or our programs are out of `nobody`'s reach."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    data_dir: Path
    host: str = "127.0.0.1"
    port: Port = 8094
    secret: str | None = None
    log: LogSettings = LogSettings()
    database: DatabaseSettings = DatabaseSettings()
    redis: RedisSettings = RedisSettings()
    kafka: KafkaSettings = KafkaSettings()
    http: HttpSettings = HttpSettings()
    attempts: AttemptSettings = AttemptSettings()
    relay: RelaySettings = RelaySettings()
    billing: BillingSettings = BillingSettings()
    accounts: AccountSettings = AccountSettings()
    invitations: InvitationSettings = InvitationSettings()
    lease: LeaseSettings = LeaseSettings()
    demo: DemoSettings = DemoSettings()
    embedded: EmbeddedSettings = EmbeddedSettings()

    def __repr__(self) -> str:
        return f"Settings(data_dir={str(self.data_dir)!r}, …)"


def load_settings(env: Mapping[str, str], **overrides: object) -> Settings:
    """The settings of one process; reads `<data>/config.toml` and nothing else.

    `overrides` are named like the environment in lower case (`port`, `relay_idle_timeout_s`,
    `data_dir`); None means "not given". Raises SiteProblem with one sentence for the first fault.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    data_dir = _data_dir(env, given.pop("data_dir", None))
    keys = dict(_keys(Settings))
    values = _from_file(data_dir / "config.toml", keys)
    for key, kind in keys.items():
        variable = variable_of(key)
        # An empty variable is how compose files say "not set".
        if text := env.get(variable, "").strip():
            values[key] = _convert(text, kind, strict=False, where=f"The environment's {variable}")
        if variable.lower() in given:
            flag = given.pop(variable.lower())
            where = f"The option {variable.lower()}"
            values[key] = _convert(flag, kind, strict=not isinstance(flag, str), where=where)
    if given:
        raise TypeError(f"no such settings: {', '.join(sorted(given))}")
    settings = _build(data_dir, values)
    _check_together(settings)
    return settings


def variable_of(key: str) -> str:
    """The environment's name of a key: `relay.idle_timeout_s` is `RELAY_IDLE_TIMEOUT_S`."""
    return key.replace(".", "_").upper()


def _data_dir(env: Mapping[str, str], override: object) -> Path:
    chosen = str(override or env.get(DATA_DIR_VARIABLE, "").strip() or ".data")
    try:
        return Path(chosen).expanduser().absolute()
    except (RuntimeError, ValueError, OSError) as error:
        raise SiteProblem(f"The data folder {chosen!r} is not a usable path: {error}.") from error


def _keys(struct: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every key with its type, dotted: `("port", Port)`, `("log.level", Literal[…])`."""
    for name, kind in get_type_hints(struct, include_extras=True).items():
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            yield from _keys(kind, f"{prefix}{name}.")
        elif kind is not Path and name in struct.__struct_fields__:
            yield prefix + name, kind


def _from_file(path: Path, keys: Mapping[str, object]) -> dict[str, object]:
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}  # Whoever makes the data folder says what is wrong with it.
    except UnicodeDecodeError as error:
        raise SiteProblem(f"{path} is not UTF-8 text (byte {error.start}).") from error
    except tomllib.TOMLDecodeError as error:
        raise SiteProblem(f"{path} is not valid TOML: {error}.") from error
    except OSError as error:
        raise SiteProblem(f"{path} cannot be read: {error.strerror}.") from error
    values: dict[str, object] = {}
    for key, value in _leaves(tree, keys):
        if key not in keys:
            raise _unknown(path, key, value, keys)
        values[key] = _convert(value, keys[key], strict=True, where=f"{key} in {path}")
    return values


def _leaves(
    tree: Mapping[str, object], keys: Mapping[str, object], prefix: str = ""
) -> Iterator[tuple[str, object]]:
    for name, value in tree.items():
        key = prefix + name
        if isinstance(value, dict) and any(known.startswith(key + ".") for known in keys):
            yield from _leaves(cast("dict[str, object]", value), keys, key + ".")
        else:
            yield key, value


def _unknown(path: Path, key: str, value: object, keys: Mapping[str, object]) -> SiteProblem:
    group = [known for known in keys if known.startswith(key + ".")]
    if group:
        return SiteProblem(f"{key} in {path} is a group, not a value; it holds {', '.join(group)}.")
    # A whole unknown table is named by its first key: `rely.idle_timeout_s` finds `relay.…`.
    inner = next(iter(cast("dict[str, object]", value)), "") if isinstance(value, dict) else ""
    sought = f"{key}.{inner}" if inner else key
    close = difflib.get_close_matches(sought, list(keys), n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]}?" if close else f" Known keys: {', '.join(sorted(keys))}."
    return SiteProblem(f"Unknown key {sought} in {path}.{hint}")


def _convert(value: object, kind: object, *, strict: bool, where: str) -> object:
    if kind == Texts and not strict and isinstance(value, str):
        value = [part for text in value.split(",") if (part := text.strip())]
    # A number where a word is due would pass unnoticed only in the environment, where all is text.
    try:
        return msgspec.convert(value, cast("type[object]", kind), strict=strict)
    except msgspec.ValidationError as error:
        if kind == DecimalText:
            raise SiteProblem(f'{where} must be a decimal in quotes, such as "7.3".') from error
        fault = str(error).replace("`", "").replace(" | null", "")
        raise SiteProblem(f"{where} is wrong: {fault[:1].lower()}{fault[1:]}.") from error


def _build(data_dir: Path, values: Mapping[str, object]) -> Settings:
    top: dict[str, object] = {"data_dir": data_dir}
    groups: dict[str, dict[str, object]] = {}
    for key, value in values.items():
        group, _, name = key.rpartition(".")
        if group:
            groups.setdefault(group, {})[name] = value
        else:
            top[key] = value
    kinds = get_type_hints(Settings)
    for group, fields in groups.items():
        top[group] = kinds[group](**fields)
    return Settings(**top)  # pyright: ignore[reportArgumentType] - each value was converted above


def _check_together(settings: Settings) -> None:
    """Faults that only two values make together."""
    if settings.database.owner_url and not settings.database.url:
        raise SiteProblem(
            "DATABASE_OWNER_URL is set without DATABASE_URL: set DATABASE_URL too (the "
            "application's role), or neither to use the embedded PostgreSQL."
        )
    if settings.lease.renew_seconds * 2 > settings.lease.seconds:
        raise SiteProblem(
            "lease.renew_seconds must be at most half of lease.seconds, or a busy process would "
            "lose its leases."
        )
    for text in settings.http.trusted_proxies:
        _check_network(text)
    if Decimal(settings.billing.cny_per_usd) == 0:
        raise SiteProblem('billing.cny_per_usd must be more than zero, such as "7.3".')


def _check_network(text: str) -> None:
    try:
        _ = ip_network(text, strict=False)
    except ValueError as error:
        raise SiteProblem(
            f"http.trusted_proxies holds {text[:80]!r}, which is no network; write 10.0.0.0/8."
        ) from error
