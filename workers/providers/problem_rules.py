"""What providers call their errors, as data: error codes and phrases → problem classes.

Codes are compared in lower case. Sources: the providers' own error pages.
"""

from __future__ import annotations

import re
from typing import Final

from schemas.chat import ProblemClass as P

CLASS_OF_CODE: Final[dict[str, P]] = {
    # OpenAI, and the many that copy it
    "invalid_api_key": P.AUTH,
    "authentication_error": P.AUTH,
    "permission_error": P.PERMISSION,
    "access_denied": P.PERMISSION,
    "model_not_found": P.NOT_FOUND,
    "context_length_exceeded": P.CONTEXT_TOO_LONG,
    "string_above_max_length": P.CONTEXT_TOO_LONG,
    "content_policy_violation": P.CONTENT_FILTER,
    "content_filter": P.CONTENT_FILTER,
    "rate_limit_exceeded": P.RATE_LIMIT,
    "rate_limit_reached_error": P.RATE_LIMIT,
    "rate_limit_error": P.RATE_LIMIT,
    "insufficient_quota": P.QUOTA_EXHAUSTED,
    "credit_balance_exhausted": P.QUOTA_EXHAUSTED,
    "billing_hard_limit_reached": P.QUOTA_EXHAUSTED,
    "billing_not_active": P.QUOTA_EXHAUSTED,
    "exceeded_current_quota_error": P.QUOTA_EXHAUSTED,
    "insufficient_balance": P.QUOTA_EXHAUSTED,
    "enforced_spend_limit_reached": P.QUOTA_EXHAUSTED,
    "billing_error": P.QUOTA_EXHAUSTED,
    "server_is_overloaded": P.OVERLOADED,
    "slow_down": P.OVERLOADED,
    "overloaded_error": P.OVERLOADED,
    "engine_overloaded_error": P.OVERLOADED,
    "capacity_exceeded": P.OVERLOADED,
    "timeout_error": P.TIMEOUT,
    # Azure
    "responsibleaipolicyviolation": P.CONTENT_FILTER,
    "deploymentnotfound": P.NOT_FOUND,
    # DashScope
    "invalidapikey": P.AUTH,
    "accessdenied": P.PERMISSION,
    "arrearage": P.QUOTA_EXHAUSTED,
    "modelnotfound": P.NOT_FOUND,
    "throttling.ratequota": P.RATE_LIMIT,
    "throttling.allocationquota": P.RATE_LIMIT,
    "data_inspection_failed": P.CONTENT_FILTER,
    "datainspectionfailed": P.CONTENT_FILTER,
    # Ark
    "authenticationerror": P.AUTH,
    "accountoverdueerror": P.QUOTA_EXHAUSTED,
    "invalidendpointormodel.notfound": P.NOT_FOUND,
    "modelnotopen": P.NOT_FOUND,
    "invalidendpoint.closedendpoint": P.NOT_FOUND,
    "inputtextriskdetection": P.CONTENT_FILTER,
    "inputimageriskdetection": P.CONTENT_FILTER,
    "outputtextriskdetection": P.CONTENT_FILTER,
    "sensitivecontentdetected": P.CONTENT_FILTER,
    # Zhipu
    "1000": P.AUTH,
    "1001": P.AUTH,
    "1002": P.AUTH,
    "1003": P.AUTH,
    "1004": P.AUTH,
    "1113": P.QUOTA_EXHAUSTED,
    "1211": P.NOT_FOUND,
    "1220": P.PERMISSION,
    "1221": P.PERMISSION,
    "1222": P.PERMISSION,
    "1261": P.CONTEXT_TOO_LONG,
    "1301": P.CONTENT_FILTER,
    "1302": P.RATE_LIMIT,
    "1303": P.RATE_LIMIT,
    "1304": P.QUOTA_EXHAUSTED,
    "1305": P.RATE_LIMIT,
    "1308": P.QUOTA_EXHAUSTED,
    "1310": P.QUOTA_EXHAUSTED,
    "1312": P.RATE_LIMIT,
    "1313": P.QUOTA_EXHAUSTED,
    # Spark
    "10007": P.RATE_LIMIT,
    "10008": P.OVERLOADED,
    "10110": P.OVERLOADED,
    "10013": P.CONTENT_FILTER,
    "10014": P.CONTENT_FILTER,
    "10019": P.CONTENT_FILTER,
    "10021": P.CONTENT_FILTER,
    "10163": P.BAD_REQUEST,
    "10907": P.CONTEXT_TOO_LONG,
    "11200": P.QUOTA_EXHAUSTED,
    "11201": P.RATE_LIMIT,
    "11202": P.RATE_LIMIT,
    "11203": P.RATE_LIMIT,
}

_TOO_LONG: Final = re.compile(
    r"maximum context length|context window|context_length|prompt is too long"
    r"|range of input length should be|too many tokens",
    re.IGNORECASE,
)
_NO_MONEY: Final = re.compile(
    r"insufficient.{0,20}(?:balance|quota|credit)|exceeded your current quota|arrear"
    r"|欠费|余额不足",
    re.IGNORECASE,
)
CLASS_OF_PHRASE: Final[tuple[tuple[frozenset[int], re.Pattern[str], P], ...]] = (
    (frozenset({400, 413, 422}), _TOO_LONG, P.CONTEXT_TOO_LONG),
    (frozenset({402, 403, 429}), _NO_MONEY, P.QUOTA_EXHAUSTED),
)
"""Looked for where the codes say nothing, and only under these statuses: a 400 may quote the
client, who must not be able to talk a channel into a cooldown."""

CLASS_OF_STATUS: Final[dict[int, P]] = {
    400: P.BAD_REQUEST,
    401: P.AUTH,
    402: P.QUOTA_EXHAUSTED,
    403: P.PERMISSION,
    404: P.NOT_FOUND,
    405: P.NOT_FOUND,
    408: P.TIMEOUT,
    413: P.BAD_REQUEST,
    415: P.BAD_REQUEST,
    422: P.BAD_REQUEST,
    424: P.UPSTREAM_ERROR,
    429: P.RATE_LIMIT,
    498: P.OVERLOADED,
    503: P.OVERLOADED,
    504: P.TIMEOUT,
    522: P.TIMEOUT,
    524: P.TIMEOUT,
    529: P.OVERLOADED,
}
"""Anything else is UPSTREAM_ERROR."""
