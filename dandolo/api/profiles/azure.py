"""Azure OpenAI (learn.microsoft.com: *Azure OpenAI REST reference*, *quotas and limits*).

The base URL is the resource's own. Limits are per deployment; -1 and 0 in their headers (seen on
Responses) mean "not told". `retry-after-ms` is preferred to the header in seconds.
"""

from __future__ import annotations

from dandolo.api.profiles.profile import Kind, Profile

AZURE = Profile(
    name="azure",
    env_key="AZURE_OPENAI_API_KEY",
    auth="api-key",
    dialects=frozenset({"chat", "completions", "embeddings", "responses", "images", "audio"}),
    # Old api-versions refuse stream_options with 400.
    include_usage="try",
    limit_scope="model",
    codes={
        "deploymentnotfound": Kind.NOT_FOUND_MODEL,
        "operationnotsupported": Kind.BAD_REQUEST,
        "responsibleaipolicyviolation": Kind.MODERATION,
        "permissiondenied": Kind.AUTH,
        "nocapacity": Kind.OVERLOADED,
    },
    deployments=True,
)
