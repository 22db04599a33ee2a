"""Any server of OpenAI's dialect: vLLM, SGLang, llama.cpp, Ollama, Mistral, Groq, DeepSeek, Together, ….

Nothing is known beforehand, so usage is asked for and the refusal remembered (Mistral of 2025 answers 422
extra_forbidden to `stream_options`), and limits are read in every form seen.
"""

from __future__ import annotations

from dandolo.api.profiles.profile import ENDPOINTS, OPENAI_LIMITS, PLAIN_LIMITS, Profile

GENERIC = Profile(
    name="generic",
    dialects=ENDPOINTS - {"messages", "count_tokens", "venice_image"},
    include_usage="try",
    limits=(*OPENAI_LIMITS, PLAIN_LIMITS),
)
