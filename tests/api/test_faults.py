"""Every error form of every provider, judged; and nothing a provider sends makes the judge fail or leak."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.api.faults import (
    Fault,
    Kind,
    classify,
    in_body_error,
    in_event_field_error,
    in_stream_error,
    scrub,
)
from dandolo.api.profiles import PROFILES
from dandolo.errors import GatewayError, Retry, UpstreamInvalid, UpstreamTimeout

NOW = 1_760_000_000.0
VENICE_BUDGET = (
    b'{"error":"Too many failed attempts (> 20) resulting in a non-success status code. '
    b'Please wait 30s and try again."}'
)

# id, profile, status, body, kind, scope, take_over, breaker, client status, client code
CASES = [
    # Venice: text errors
    ("venice 400", "venice", 400, b'{"error":"Invalid request parameters","details":{"_errors":[]},"issues":[]}',
     Kind.BAD_REQUEST, "request", False, False, 400, "bad_request"),
    ("venice 400 model", "venice", 400, b'{"error":"Invalid model specified"}',
     Kind.NOT_FOUND_MODEL, "model", True, False, 404, "model_not_found"),
    ("venice 400 list, 2024", "venice", 400, b'{"error":["Unrecognized key(s) in object: \'x\'"]}',
     Kind.UNSUPPORTED_PARAM, "request", False, False, 400, "unsupported_parameter"),
    ("venice 400 context", "venice", 400,
     b'{"error":{"message":"Your request exceeds the model\'s maximum context.","type":"invalid_request_error",'
     b'"param":"messages","code":"context_length_exceeded"}}',
     Kind.CONTEXT_LENGTH, "request", False, False, 400, "context_length_exceeded"),
    ("venice 401", "venice", 401, b'{"error":"Authentication failed"}',
     Kind.AUTH, "account", True, False, 502, "upstream_auth"),
    ("venice 401 pro", "venice", 401, b'{"error":"This model is only available to Pro users"}',
     Kind.AUTH, "model", True, False, 502, "upstream_auth"),
    ("venice 402", "venice", 402, b'{"error":"Insufficient USD or Diem balance to complete request."}',
     Kind.QUOTA, "account", True, False, 402, "insufficient_quota"),
    ("venice 402 key", "venice", 402,
     b'{"error":"API key USD spend limit exceeded.","code":"API_KEY_USD_SPEND_LIMIT_EXCEEDED"}',
     Kind.QUOTA, "account", True, False, 402, "API_KEY_USD_SPEND_LIMIT_EXCEEDED"),
    ("venice 402 x402", "venice", 402, b'{"x402Version":2,"accepts":[{"scheme":"exact"}]}',
     Kind.QUOTA, "account", True, False, 402, "insufficient_quota"),
    ("venice 403", "venice", 403, b'{"error":"API access has been disabled for this account."}',
     Kind.AUTH, "account", True, False, 403, "permission_denied"),
    ("venice 404", "venice", 404, b'{"error":"Specified model not found"}',
     Kind.NOT_FOUND_MODEL, "model", True, False, 404, "model_not_found"),
    ("venice 404 character", "venice", 404,
     b'{"error":"No character could be found from the provided character_slug"}',
     Kind.BAD_REQUEST, "request", False, False, 404, "bad_request"),
    ("venice 410", "venice", 410, b'{"error":"This model has been retired"}',
     Kind.NOT_FOUND_MODEL, "model", True, False, 410, "model_not_found"),
    ("venice 413", "venice", 413, b'{"error":"The request payload is too large.","code":"PAYLOAD_TOO_LARGE"}',
     Kind.TOO_LARGE, "request", False, False, 413, "PAYLOAD_TOO_LARGE"),
    ("venice 415", "venice", 415, b'{"error":"Invalid request content-type"}',
     Kind.BAD_REQUEST, "request", False, False, 415, "bad_request"),
    ("venice 422", "venice", 422,
     b'{"error":"Your prompt violates the content policy of Venice.ai or the model provider","suggested_prompt":"x"}',
     Kind.MODERATION, "request", False, False, 422, "content_policy_violation"),
    ("venice 429", "venice", 429, b'{"error":"Rate limit exceeded"}',
     Kind.RATE_LIMIT, "model", True, False, 429, "rate_limit_exceeded"),
    ("venice 429 overloaded", "venice", 429, b'{"error":"The model is currently overloaded. Please try again later."}',
     Kind.OVERLOADED, "model", True, False, 429, "upstream_overloaded"),
    ("venice error budget", "venice", 429, VENICE_BUDGET,
     Kind.ERROR_BUDGET, "account", True, False, 429, "rate_limit_exceeded"),
    ("venice 500", "venice", 500, b'{"error":"Inference processing failed"}',
     Kind.SERVER, "request", True, True, 502, "upstream_error"),
    ("venice 503 offline", "venice", 503, b'{"error":"The model is temporarily offline. Please try again later."}',
     Kind.MODEL_OFFLINE, "model", True, True, 503, "upstream_unavailable"),
    ("venice 503 capacity", "venice", 503, b'{"error":"The model is at capacity. Please try again later."}',
     Kind.OVERLOADED, "model", True, True, 503, "upstream_overloaded"),
    ("venice 504", "venice", 504, b'{"error":"The request took too long to complete and was timed-out."}',
     Kind.TIMEOUT, "request", True, True, 504, "upstream_timeout"),
    # OpenRouter: numbers for codes, words in metadata
    ("openrouter 400", "openrouter", 400, b'{"error":{"code":400,"message":"bad"},"user_id":"user_1"}',
     Kind.BAD_REQUEST, "request", False, False, 400, "bad_request"),
    ("openrouter 400 model", "openrouter", 400, b'{"error":{"code":400,"message":"foo/bar is not a valid model ID"}}',
     Kind.NOT_FOUND_MODEL, "model", True, False, 404, "model_not_found"),
    ("openrouter 400 context", "openrouter", 400,
     b'{"error":{"code":400,"message":"too long","metadata":{"error_type":"context_length_exceeded"}}}',
     Kind.CONTEXT_LENGTH, "request", False, False, 400, "context_length_exceeded"),
    ("openrouter 402", "openrouter", 402, b'{"error":{"code":402,"message":"Insufficient credits"}}',
     Kind.QUOTA, "account", True, False, 402, "insufficient_quota"),
    ("openrouter moderation", "openrouter", 403,
     b'{"error":{"code":403,"message":"Input was flagged","metadata":{"reasons":["x"],"flagged_input":"y"}}}',
     Kind.MODERATION, "request", False, False, 403, "content_policy_violation"),
    ("openrouter guardrail", "openrouter", 403,
     b'{"error":{"code":403,"message":"Request blocked","metadata":{"patterns":["ignore"]}}}',
     Kind.MODERATION, "request", False, False, 403, "content_policy_violation"),
    ("openrouter 403 unclear", "openrouter", 403, b'{"error":{"code":403,"message":"Forbidden"}}',
     Kind.MODERATION, "request", False, False, 403, "content_policy_violation"),
    ("openrouter 403 firewall", "openrouter", 403, b"<html>Attention Required!</html>",
     Kind.AUTH, "request", True, False, 403, "permission_denied"),
    ("openrouter key limit", "openrouter", 403, b'{"error":{"code":403,"message":"Key limit exceeded (daily limit)"}}',
     Kind.QUOTA, "account", True, False, 403, "insufficient_quota"),
    ("openrouter 404", "openrouter", 404, b'{"error":{"code":404,"message":"No endpoints found for foo/bar."}}',
     Kind.NOT_FOUND_MODEL, "model", True, False, 404, "model_not_found"),
    ("openrouter 408", "openrouter", 408, b'{"error":{"code":408,"message":"Your request timed out"}}',
     Kind.TIMEOUT, "request", True, True, 504, "upstream_timeout"),
    ("openrouter 429", "openrouter", 429,
     b'{"error":{"code":429,"message":"Provider returned error","metadata":{"provider_name":"x"}}}',
     Kind.RATE_LIMIT, "model", True, False, 429, "rate_limit_exceeded"),
    ("openrouter 429 free", "openrouter", 429,
     b'{"error":{"code":429,"message":"Rate limit exceeded: free-models-per-day"}}',
     Kind.RATE_LIMIT, "account", True, False, 429, "rate_limit_exceeded"),
    ("openrouter 502", "openrouter", 502,
     b'{"error":{"code":502,"message":"bad","metadata":{"error_type":"provider_unavailable"}}}',
     Kind.SERVER, "request", True, True, 502, "upstream_error"),
    ("openrouter 503", "openrouter", 503,
     b'{"error":{"code":503,"message":"There is no available model provider that meets your routing requirements"}}',
     Kind.MODEL_OFFLINE, "model", True, True, 503, "upstream_unavailable"),
    # OpenAI
    ("openai 401", "openai", 401,
     b'{"error":{"message":"Incorrect API key provided: sk-abcd1234.","type":"invalid_request_error","param":null,'
     b'"code":"invalid_api_key"}}',
     Kind.AUTH, "account", True, False, 502, "upstream_auth"),
    ("openai quota", "openai", 429,
     b'{"error":{"message":"You exceeded your current quota","type":"insufficient_quota","param":null,'
     b'"code":"insufficient_quota"}}',
     Kind.QUOTA, "account", True, False, 429, "insufficient_quota"),
    ("openai 429", "openai", 429,
     b'{"error":{"message":"Rate limit reached","type":"requests","param":null,"code":"rate_limit_exceeded"}}',
     Kind.RATE_LIMIT, "model", True, False, 429, "rate_limit_exceeded"),
    ("openai no access", "openai", 403,
     b'{"error":{"message":"Project `p` does not have access to model `m`","type":"invalid_request_error",'
     b'"param":null,"code":"model_not_found"}}',
     Kind.NOT_FOUND_MODEL, "model", True, False, 404, "model_not_found"),
    ("openai previous response", "openai", 404,
     b'{"error":{"message":"Previous response with id \'resp_1\' not found.","type":"invalid_request_error",'
     b'"param":"previous_response_id","code":"previous_response_not_found"}}',
     Kind.BAD_REQUEST, "request", False, False, 404, "previous_response_not_found"),
    ("openai unsupported", "openai", 400,
     b'{"error":{"message":"Unsupported parameter: \'max_tokens\'","type":"invalid_request_error",'
     b'"param":"max_tokens","code":"unsupported_parameter"}}',
     Kind.UNSUPPORTED_PARAM, "request", False, False, 400, "unsupported_parameter"),
    ("openai 409", "openai", 409, b'{"error":{"message":"locked","type":"conflict","param":null,"code":null}}',
     Kind.BAD_REQUEST, "request", False, False, 409, "bad_request"),
    # Azure
    ("azure filter", "azure", 400,
     b'{"error":{"message":"The response was filtered","type":null,"param":"prompt","code":"content_filter",'
     b'"status":400,"innererror":{"code":"ResponsibleAIPolicyViolation"}}}',
     Kind.MODERATION, "request", False, False, 400, "content_filter"),
    ("azure deployment", "azure", 404,
     b'{"error":{"code":"DeploymentNotFound","message":"The API deployment for this resource does not exist."}}',
     Kind.NOT_FOUND_MODEL, "model", True, False, 404, "DeploymentNotFound"),
    ("azure 429", "azure", 429, b'{"error":{"code":"429","message":"Please retry after 26 seconds."}}',
     Kind.RATE_LIMIT, "model", True, False, 429, "rate_limit_exceeded"),
    # Anthropic
    ("anthropic 529", "anthropic", 529, b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}',
     Kind.OVERLOADED, "model", True, True, 503, "upstream_overloaded"),
    ("anthropic 404", "anthropic", 404,
     b'{"type":"error","error":{"type":"not_found_error","message":"model: claude-9"},"request_id":"req_1"}',
     Kind.NOT_FOUND_MODEL, "model", True, False, 404, "model_not_found"),
    ("anthropic spend", "anthropic", 429,
     b'{"type":"error","error":{"type":"rate_limit_error","message":"x",'
     b'"details":{"error_code":"enforced_spend_limit_reached"}}}',
     Kind.QUOTA, "account", True, False, 429, "insufficient_quota"),
    ("anthropic credit", "anthropic", 400,
     b'{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low"}}',
     Kind.QUOTA, "account", True, False, 402, "insufficient_quota"),
    ("anthropic 413", "anthropic", 413, b"<html><title>413</title></html>",
     Kind.TOO_LARGE, "request", False, False, 413, "request_too_large"),
    # Others
    ("mistral 422", "generic", 422,
     b'{"object":"error","message":{"detail":[{"type":"extra_forbidden","loc":["body","stream_options",'
     b'"include_usage"],"msg":"Extra inputs are not permitted","input":true}]},"type":"invalid_request_error",'
     b'"param":null,"code":null}',
     Kind.UNSUPPORTED_PARAM, "request", False, False, 422, "unsupported_parameter"),
    ("mistral 429", "generic", 429,
     b'{"object":"error","message":"Rate limit exceeded","type":"rate_limited","param":null,"code":"1300"}',
     Kind.RATE_LIMIT, "account", True, False, 429, "rate_limit_exceeded"),
    ("vllm 404", "generic", 404,
     b'{"object":"error","message":"The model `x` does not exist.","type":"NotFoundError","param":null,"code":404}',
     Kind.NOT_FOUND_MODEL, "model", True, False, 404, "model_not_found"),
    ("vllm 400 context", "generic", 400,
     b'{"error":{"message":"This model\'s maximum context length is 4096 tokens.","type":"BadRequestError",'
     b'"param":null,"code":400}}',
     Kind.CONTEXT_LENGTH, "request", False, False, 400, "context_length_exceeded"),
    ("llama.cpp 400 context", "generic", 400,
     b'{"error":{"code":400,"message":"request (4390 tokens) exceeds the available context size (4096 tokens)",'
     b'"type":"exceed_context_size_error","n_prompt_tokens":4390,"n_ctx":4096}}',
     Kind.CONTEXT_LENGTH, "request", False, False, 400, "context_length_exceeded"),
    ("llama.cpp 500 context", "generic", 500,
     b'{"error":{"code":500,"message":"Context size has been exceeded.","type":"server_error"}}',
     Kind.CONTEXT_LENGTH, "request", False, False, 400, "context_length_exceeded"),
    ("llama.cpp loading", "generic", 503,
     b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}',
     Kind.MODEL_OFFLINE, "model", True, True, 503, "upstream_unavailable"),
    ("groq 413", "generic", 413,
     b'{"error":{"message":"Request too large for model","type":"tokens","code":"rate_limit_exceeded"}}',
     Kind.TOO_LARGE, "request", False, False, 413, "rate_limit_exceeded"),
    ("google list", "generic", 400,
     b'[{"error":{"code":400,"message":"API key not valid. Please pass one.","status":"INVALID_ARGUMENT"}}]',
     Kind.AUTH, "account", True, False, 502, "upstream_auth"),
    ("fastapi text", "generic", 404, b'{"detail":"Not Found"}',
     Kind.NOT_FOUND_MODEL, "model", True, False, 404, "model_not_found"),
    ("fastapi list", "generic", 422,
     b'{"detail":[{"loc":["body","messages",0,"role"],"msg":"field required","type":"missing"}]}',
     Kind.BAD_REQUEST, "request", False, False, 422, "bad_request"),
    ("message only", "generic", 400, b'{"message":"no"}',
     Kind.BAD_REQUEST, "request", False, False, 400, "bad_request"),
    ("errors list", "generic", 400, b'{"success":false,"errors":[{"code":7003,"message":"no route"}]}',
     Kind.BAD_REQUEST, "request", False, False, 400, "bad_request"),
    ("plain text", "generic", 400, b"no good", Kind.BAD_REQUEST, "request", False, False, 400, "bad_request"),
    ("plain 503", "generic", 503, b"upstream connect error", Kind.OVERLOADED, "model", True, True, 503,
     "upstream_overloaded"),
    ("html 502", "generic", 502, b"<html><h1>Bad Gateway</h1></html>", Kind.SERVER, "request", True, True, 502,
     "upstream_error"),
    ("cloudflare 524", "generic", 524, b"<html>", Kind.TIMEOUT, "request", True, True, 504, "upstream_timeout"),
    ("empty", "generic", 500, b"", Kind.SERVER, "request", True, True, 502, "upstream_error"),
    ("invalid utf-8", "generic", 500, b'{"error":"\xff\xfe bad"}', Kind.SERVER, "request", True, True, 502,
     "upstream_error"),
    ("redirect", "generic", 302, b"", Kind.REDIRECT, "account", True, True, 502, "upstream_invalid_response"),
    ("unusable 200", "generic", 200, b"<html>", Kind.INVALID, "request", True, True, 502,
     "upstream_invalid_response"),
    ("legal reasons", "generic", 451, b'{"error":{"message":"not available in your country","code":451}}', Kind.AUTH,
     "request", True, False, 451, "permission_denied"),
    ("openai 429 larger than a minute's limit", "openai", 429,
     b'{"error":{"message":"Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 61200.",'
     b'"type":"tokens","param":null,"code":"rate_limit_exceeded"}}',
     Kind.RATE_LIMIT, "request", True, False, 429, "rate_limit_exceeded"),
    ("openrouter 402 longer than the credit left", "openrouter", 402,
     b'{"error":{"message":"This request requires more credits, or fewer max_tokens. You requested up to 65536 tokens,'
     b' but can only afford 1432.","code":402}}',
     Kind.QUOTA, "request", True, False, 402, "insufficient_quota"),
    ("headers too large", "generic", 431, b"", Kind.INVALID, "request", True, False, 502,
     "upstream_invalid_response"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[c[0] for c in CASES])
def test_classify(case) -> None:  # type: ignore[no-untyped-def]
    _, profile, status, body, kind, scope, take_over, breaker, client_status, code = case
    fault = classify(PROFILES[profile], status, {}, body, NOW)
    assert (fault.kind, fault.scope, fault.take_over, fault.counts_for_breaker) == (kind, scope, take_over, breaker)
    assert (fault.client_status, fault.code) == (client_status, code)
    assert fault.message
    assert "<" not in fault.message
    assert fault.type


def test_a_clients_mistake_keeps_the_providers_words() -> None:
    body = b'{"error":{"message":"Unsupported parameter","type":"invalid_request_error","param":"n","code":"c"}}'
    fault = classify(PROFILES["openai"], 400, {}, body, NOW)
    assert (fault.message, fault.type, fault.param, fault.code) == (
        "Unsupported parameter",
        "invalid_request_error",
        "n",
        "c",
    )


MESSAGES = [
    ("string", b'{"error":"why"}', "why"),
    ("list", b'{"error":["a","b"]}', "a; b"),
    ("zod", b'{"error":"Invalid","issues":[{"path":["n"],"message":"too big"}]}', "Invalid (n: too big)"),
    ("fastapi", b'{"detail":[{"loc":["body","n"],"msg":"bad"},{"loc":["body","m",0],"msg":"no"}]}', "n: bad; m.0: no"),
    ("mistral", b'{"object":"error","message":{"detail":[{"loc":["body","n"],"msg":"bad"}]}}', "n: bad"),
    ("vllm", b'{"object":"error","message":"why"}', "why"),
    ("json string", b'"why"', "why"),
    ("bom", b'\xef\xbb\xbf{"error":"why"}', "why"),
    ("text", b"why\n", "why"),
    ("binary", bytes(range(256)), "the provider refused the request with 400 (Bad Request)"),
    ("number", b'{"error":5}', "the provider refused the request with 400 (Bad Request)"),
    ("broken", b'{"error":{"message":"why \\"so\\""', 'why "so"'),
]


@pytest.mark.parametrize(("body", "message"), [c[1:] for c in MESSAGES], ids=[c[0] for c in MESSAGES])
def test_message(body: bytes, message: str) -> None:
    assert classify(PROFILES["generic"], 400, {}, body, NOW).message == message


def test_the_refused_option_is_named() -> None:
    body = b'{"detail":[{"type":"extra_forbidden","loc":["body","stream_options"],"msg":"Extra inputs"}]}'
    fault = classify(PROFILES["generic"], 422, {}, body, NOW)
    assert (fault.kind, fault.param) == (Kind.UNSUPPORTED_PARAM, "stream_options")


def test_a_long_echo_of_the_request_still_tells_why() -> None:
    echo = json.dumps({"detail": [{"type": "value_error", "msg": "too deep", "input": "x" * 200_000}]}).encode()
    assert classify(PROFILES["generic"], 422, {}, echo, NOW).message == "too deep"


WAITS = [
    ("header", "openai", 429, {b"retry-after": b"7"}, b"", 7.0),
    ("milliseconds", "azure", 429, {b"retry-after-ms": b"1500", b"retry-after": b"2"}, b"", 1.5),
    ("text", "generic", 429, {}, b'{"error":{"message":"Please try again in 7.66s."}}', 7.66),
    ("body", "generic", 503, {}, b'{"error":"Model x is currently loading","estimated_time":20.5}', 20.5),
    ("openrouter", "openrouter", 503, {}, b'{"error":{"code":503,"message":"x","metadata":{"retry_after":9}}}', 9.0),
    ("openrouter 503", "openrouter", 503, {b"retry-after": b"60"}, b"{}", 60.0),
    ("venice budget", "venice", 429, {}, VENICE_BUDGET, 30.0),
    ("venice budget, header too short", "venice", 429, {b"retry-after": b"1"}, VENICE_BUDGET, 30.0),
    ("venice reset", "venice", 429,
     {b"x-ratelimit-remaining-requests": b"0", b"x-ratelimit-reset-requests": b"1760000012"}, b"{}", 12.0),
    ("none", "openai", 429, {b"x-ratelimit-reset-requests": b"6m0s"}, b"{}", None),
    ("not of a 400", "openai", 400, {}, b'{"error":"Please try again in 5s"}', None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("profile", "status", "headers", "body", "expected"), [c[1:] for c in WAITS], ids=[c[0] for c in WAITS]
)
def test_wait(profile, status, headers, body, expected) -> None:  # type: ignore[no-untyped-def]
    assert classify(PROFILES[profile], status, headers, body, NOW).retry_after_s == expected


def test_a_401_says_nothing_of_the_provider() -> None:
    body = b'{"error":{"message":"Incorrect API key: verysecret","param":"verysecret","code":"verysecret"}}'
    for name, one in PROFILES.items():
        fault = classify(one, 401, {}, body, NOW)
        assert "verysecret" not in repr(fault), name
        assert (fault.client_status, fault.code, fault.type) == (502, "upstream_auth", "upstream_error")


SECRET = "averyownsecret"
KEYS = [
    ("openai", "sk-proj-abcDEF1234567890abcDEF"),
    ("openai masked", "sk-proj-********************abcd"),
    ("openrouter", "sk-or-v1-" + "0123456789abcdef" * 4),
    ("anthropic", "sk-ant-api03-AbCdEf_gh-1234567890"),
    ("groq", "gsk_abcdefghijklmnop1234"),
    ("xai", "xai-abcdefghijklmnop1234"),
    ("google", "AIzaSyA1234567890abcdefghijklmnopqrstuv"),
    ("hex", "0123456789abcdef0123456789abcdef"),
    ("base64", "dGhpcyBpcyBhIHNlY3JldCBrZXkgZm9yIHlvdQ+9X/z="),
    ("base64url", "q7Zt-1XvK9_pL3mQwR8sYbN2cD5fG6hJ4kT0uVaE_Wi"),
    ("jwt", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-DEF_123"),
    ("bearer", "Bearer something-secret"),
    ("named", "api_key=hunter22"),
    ("header", '"x-api-key": "hunter22"'),
    ("userinfo", "https://user:hunter22@host/"),
    ("explicit", SECRET),
]


@pytest.mark.parametrize("key", [c[1] for c in KEYS], ids=[c[0] for c in KEYS])
def test_keys_are_taken_out_of_a_403(key: str) -> None:
    body = json.dumps({"error": {"message": f"no access with {key}, sorry", "code": key, "param": key}}).encode()
    fault = classify(PROFILES["openai"], 403, {}, body, NOW, secrets=[SECRET])
    assert "hunter22" not in repr(fault)
    assert key not in repr(fault)
    assert key.removeprefix("Bearer ") not in repr(fault)
    assert "[redacted]" in fault.message
    assert fault.message.startswith("no access with ")
    assert fault.message.endswith("sorry")


INNOCENT = [
    "Qwen/Qwen2.5-Coder-32B-Instruct-GPTQ-Int4",
    "meta-llama/llama-3.3-70b-instruct-fp8-turbo-extended",
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",
    "mistralai/Mixtral-8x22B-Instruct-v0.1",
    "request id req_011CSHoEeqs5C35K2UUqR7Fy",
    "maximum context length is 4096 tokens",
    "You must provide a bearer token",
    "task-force and risk-based routing",
    "messages.0.content.1.image_url.detail",
]


@pytest.mark.parametrize("text", INNOCENT)
def test_names_and_prose_are_left_alone(text: str) -> None:
    assert scrub(text) == text


def test_a_key_across_the_cut_leaves_no_half() -> None:
    for pad in range(8140, 8200):
        assert SECRET[:6] not in scrub("a " * (pad // 2) + SECRET + " end", [SECRET])


@pytest.mark.parametrize("pad", [2030, 2040, 2047])
def test_a_key_across_the_messages_cut_leaves_no_half(pad: int) -> None:
    body = json.dumps({"error": ("a " * pad)[:pad] + " " + SECRET}).encode()
    assert SECRET[:4] not in classify(PROFILES["openai"], 400, {}, body, NOW, secrets=[SECRET]).message


OK = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"content": 'say "error" now'}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1},
    }
).encode()

INSIDE = [
    ("fine", OK, None),
    ("null", b'{"id":"r","error":null,"choices":[]}', None),
    ("null spaced", b'{"id":"r", "error" : null , "incomplete_details": null}', None),
    ("empty text", b'{"choices":[],"error":""}', None),
    ("empty object", b'{"choices":[],"error":{}}', None),
    ("deep", b'{"choices":[{"message":{"tool":{"error":"x"}}}]}', None),
    ("no json", b'"error" <html>', None),
    ("list", b'[{"error":1}]', None),
    ("empty", b"", None),
    ("openrouter top", b'{"error":{"code":429,"message":"slow"},"user_id":"u"}', (429, Kind.RATE_LIMIT)),
    (
        "openrouter choice",
        b'{"choices":[{"message":{"content":"part"},"finish_reason":"error","error":{"code":502,"message":"gone",'
        b'"metadata":{"error_type":"provider_unavailable"}}}]}',
        (502, Kind.SERVER),
    ),
    ("finish_reason", b'{"choices":[{"finish_reason":"error"}]}', (500, Kind.SERVER)),
    (
        "llama.cpp 200",
        b'{"error":{"code":400,"message":"the request exceeds the available context size",'
        b'"type":"exceed_context_size_error"}}',
        (400, Kind.CONTEXT_LENGTH),
    ),
    ("string code", b'{"error":{"code":"server_error","message":"x"}}', (500, Kind.SERVER)),
    ("status in quotes", b'{"error":{"code":"503","message":"x"}}', (503, Kind.OVERLOADED)),
    ("text", b'{"error":"model is overloaded"}', (500, Kind.OVERLOADED)),
    ("vllm", b'{"object":"error","message":"x","type":"BadRequestError","code":400}', (400, Kind.BAD_REQUEST)),
    ("auth", b'{"error":{"code":401,"message":"key sk-123456789"}}', (401, Kind.AUTH)),
    ("responses", b'{"status":"failed","error":{"code":"server_error","message":"x"}}', (500, Kind.SERVER)),
    (
        "responses typed",
        b'{"status":"failed","error":{"code":"server_error","message":"x"},"error_type":"rate_limit_exceeded"}',
        (429, Kind.RATE_LIMIT),
    ),
    ("anthropic", b'{"type":"error","error":{"type":"overloaded_error","message":"x"}}', (503, Kind.OVERLOADED)),
    ("large", b'{"error":{"message":"x","code":429},"pad":"' + b"y" * 300_000 + b'"}', (500, Kind.SERVER)),
    ("large fine", b'{"data":"' + b"y" * 300_000 + b'","error":"x"}', None),
]


@pytest.mark.parametrize(("body", "expected"), [c[1:] for c in INSIDE], ids=[c[0] for c in INSIDE])
def test_error_inside_a_200(body: bytes, expected: tuple[int, Kind] | None) -> None:
    for fault in (in_body_error(body), in_stream_error(body)):
        assert (None if fault is None else (fault.status, fault.kind)) == expected


STREAM = [
    (
        "openrouter",
        b'{"id":"gen-1","object":"chat.completion.chunk","error":{"code":"server_error","message":"gone"},'
        b'"choices":[{"index":0,"delta":{"content":""},"finish_reason":"error"}]}',
        Kind.SERVER,
    ),
    ("vllm", b'{"error":{"object":"error","message":"bad","type":"BadRequestError","code":400}}', Kind.BAD_REQUEST),
    ("anthropic", b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}', Kind.OVERLOADED),
    ("responses", b'{"type":"error","code":"rate_limit_exceeded","message":"x","param":null,"sequence_number":3}',
     Kind.RATE_LIMIT),
    ("responses failed", b'{"type":"response.failed","response":{"error":{"code":"server_error","message":"x"}}}',
     Kind.SERVER),
    ("responses created", b'{"type":"response.created","response":{"error":null,"instructions":null}}', None),
    ("groq", b'{"choices":[],"x_groq":{"id":"r","error":"over capacity"}}', Kind.OVERLOADED),
    ("done", b"[DONE]", None),
    ("chunk", b'{"choices":[{"delta":{"content":"\\"error\\""},"finish_reason":null}]}', None),
]  # fmt: skip


@pytest.mark.parametrize(("data", "kind"), [c[1:] for c in STREAM], ids=[c[0] for c in STREAM])
def test_error_inside_a_stream(data: bytes, kind: Kind | None) -> None:
    fault = in_stream_error(data)
    assert (None if fault is None else fault.kind) == kind


FIELDS = [
    ("llama.cpp", b'error: {"code":500,"message":"boom","type":"server_error"}\n\n', Kind.SERVER),
    ("no space", b'error:{"code":429,"message":"boom"}\n\n', Kind.RATE_LIMIT),
    ("after another field", b'id: 1\r\nerror: {"code":503,"message":"Loading model"}\r\n\r\n', Kind.MODEL_OFFLINE),
    ("data", b'data: {"a":"error: x"}\n\n', None),
    ("event name", b"event: error\ndata: {}\n\n", None),
]


@pytest.mark.parametrize(("event", "kind"), [c[1:] for c in FIELDS], ids=[c[0] for c in FIELDS])
def test_error_as_a_field(event: bytes, kind: Kind | None) -> None:
    fault = in_event_field_error(event)
    assert (None if fault is None else fault.kind) == kind


def test_a_fault_becomes_the_error_it_is() -> None:
    one = PROFILES["generic"]
    timeout = classify(one, 504, {}, b"", NOW).error()
    assert isinstance(timeout, UpstreamTimeout)
    assert (timeout.status, timeout.retry, timeout.source) == (504, Retry.OTHER, "upstream")
    assert isinstance(classify(one, 301, {}, b"", NOW).error(), UpstreamInvalid)
    bad = classify(one, 422, {b"retry-after": b"3"}, b'{"detail":"no"}', NOW).error()
    assert isinstance(bad, GatewayError)
    assert (bad.status, bad.retry, bad.message, bad.retry_after_s) == (422, Retry.NEVER, "no", 3.0)


def check(fault: Fault) -> None:
    assert 400 <= fault.client_status <= 504
    assert fault.client_status not in (401, 407)
    assert fault.take_over or 400 <= fault.client_status < 500
    assert not (fault.counts_for_breaker and not fault.take_over)
    assert 0 < len(fault.message) <= 2300
    assert fault.retry_after_s is None or 0 <= fault.retry_after_s <= 3600
    assert fault.type
    assert fault.code


NAMES = ["error", "message", "code", "type", "detail", "metadata", "loc", "choices", "object", "x"]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=20,
)


@given(st.sampled_from(sorted(PROFILES)), st.integers(0, 999), st.binary(max_size=200))
def test_any_bytes_are_judged(profile: str, status: int, body: bytes) -> None:
    check(classify(PROFILES[profile], status, {}, body, NOW))


@given(st.sampled_from(sorted(PROFILES)), st.integers(300, 599), json_values)
def test_any_json_is_judged(profile: str, status: int, value: object) -> None:
    body = json.dumps(value).encode()
    check(classify(PROFILES[profile], status, {}, body, NOW))
    for fault in (in_body_error(body), in_stream_error(body), in_event_field_error(b"error: " + body)):
        if fault is not None:
            check(fault)


@given(st.sampled_from([c[3] for c in CASES]), st.data())
def test_any_cut_of_a_known_body_is_judged(body: bytes, data: st.DataObject) -> None:
    check(classify(PROFILES["generic"], 400, {}, body[: data.draw(st.integers(0, len(body)))], NOW))


@given(st.text(max_size=200), st.text(max_size=200))
def test_a_given_secret_never_survives(before: str, after: str) -> None:
    assert SECRET not in scrub(before + SECRET + after, [SECRET])


JUNK = [
    ("spaces", b" "),
    ("braces", b"{"),
    ("brackets", b"["),
    ("nested", b'{"error":'),
    ("letters", b"a"),
    ("digits and letters", b"a1B"),
    ("quotes", b'"'),
    ("backslashes", b"\\"),
    ("keys", b"sk-"),
    ("messages", b'"message":"'),
    ("stream_options", b"not support stream_options "),
    ("zeros", b"\x00"),
    ("commas", b'{"message": "' + b"x" * 100),
]


@pytest.mark.parametrize("piece", [c[1] for c in JUNK], ids=[c[0] for c in JUNK])
def test_ten_megabytes_of_junk_cost_no_more_than_their_beginning(piece: bytes) -> None:
    body = (piece * (10_000_000 // len(piece) + 1))[:10_000_000]
    for whole in (body, b'{"error":{"message":"' + body):
        began = time.thread_time()
        check(classify(PROFILES["generic"], 400, {}, whole, NOW))
        assert time.thread_time() - began < 0.25
