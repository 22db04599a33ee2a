"""What is known of one account and model from the calls it answers: latency, speed, errors, calls under way.

Each worker measures for itself and nothing here is cached or shared, so a decision sees the last call. A
failure never contributes a latency: a provider that fails fast must not look fast. Only first *content* ends
the wait for a first token; comments and role-only chunks are not to be reported. Everything is updated in
constant time (the oldest unanswered call: amortised). Time is monotonic seconds and always an argument.
"""

from __future__ import annotations

from collections import deque
from math import exp

ALPHA = 0.1
TIME_CONSTANT_S = 10.0
"""A sample after a pause of Δt weighs 1 − e^(−Δt / 10 s), at least ALPHA."""
CLIP = 4.0
"""A sample counts for at most four times what is known, so that one straggler does not bury a provider."""
P95_STEP = 0.15
P95_START = 2.0
ERRORS_HELD_S = 15.0
ERRORS_GONE_S = 30.0
"""Without a failure the error rate stays for 15 s and is then let go of in a straight line until 30 s."""
ERRORS_CONFIRMED_S = 60.0
"""A failure up to so long after the last one brings back all that was let go of for want of news."""
RECENT_MAX = 32
LOOK_EVERY = 8
USUAL_ALPHA = 0.1
"""The latest 32 first tokens are looked at after every eighth; what is usual moves a tenth of the way each time."""
SAMPLE_S = 0.002
"""Of plain calls that end more often than that not each is noted: what changes in between is noise."""
STALL_FACTOR = 2.5
OUTRUN_FACTOR = 2.0
STALL_COLD_S = 5.0
STALL_MIN_S = 0.5
NEVER = float("inf")
NONE_AT = -1e9

_GAP_S = 1.0536
"""−10 s · ln(1 − ALPHA): up to this pause ALPHA is the larger of the two, and no exponential is needed."""


class Measured:
    """One account × model as it answers. All public fields are for reading.

    `first_s` first-token EWMA in seconds, `first_p95_s` its 95th percentile, `tokens_per_s` speed of streams,
    `total_s` and `total_tokens` EWMAs of plain calls; each 0 while unknown. `first_low_s` is the lower quartile of
    the latest first tokens, `first_usual_s` the upper one in the long run. `errors` is the error EWMA and
    `errors_at` the time of the last failure (read `error_rate`). `oldest_at` is when the oldest stream without
    content began, NEVER without one; `stall_s` the age at which that speaks against the provider.
    """

    __slots__ = (
        "_look_in", "_next", "_plain", "_recent", "_speed_at", "_streaming", "_total_at", "_unanswered", "errors",
        "errors_at", "first_at", "first_low_s", "first_p95_s", "first_s", "first_usual_s", "oldest_at", "stall_s",
        "tokens_per_s", "total_s", "total_tokens",
    )  # fmt: skip

    def __init__(self) -> None:
        self.first_s = 0.0
        self.first_at = 0.0
        self.first_p95_s = 0.0
        self.first_low_s = 0.0
        self.first_usual_s = 0.0
        self._recent: deque[float] = deque(maxlen=RECENT_MAX)
        self._look_in = LOOK_EVERY
        self.tokens_per_s = 0.0
        self.total_s = 0.0
        self.total_tokens = 0.0
        self.errors = 0.0
        self.errors_at = 0.0
        self.oldest_at = NEVER
        self.stall_s = STALL_COLD_S
        self._speed_at = 0.0
        self._total_at = NONE_AT
        self._next = 0
        self._unanswered: dict[int, float] = {}
        self._streaming: dict[int, float] = {}
        self._plain: dict[int, float] = {}

    # -- the life of a call ----------------------------------------------------------------------------

    def begin(self, now: float, stream: bool = True) -> int:
        """A call is sent. Returns its number, which one of `finished`, `failed` or `abandoned` must be given.

        Numbers of plain calls are negative: their first token is not seen.
        """
        call = self._next = self._next + 1
        if not stream:
            self._plain[-call] = now
            return -call
        if not self._unanswered:
            self.oldest_at = now
        self._unanswered[call] = now
        return call

    def first_content(self, call: int, now: float) -> float:
        """The first content of a stream has come. Said twice it counts once. Returns when the call began."""
        since = self._unanswered.pop(call, None)
        if since is None:
            return now
        self._streaming[call] = now
        if since <= self.oldest_at:
            # The scan passes over places that were freed; it is in C, and a dict keeps fewer of them than
            # thrice its entries, so the whole is constant a call in practice.
            self.oldest_at = next(iter(self._unanswered.values()), NEVER)
        first_s = now - since
        recent = self._recent
        recent.append(first_s)
        self._look_in -= 1
        if not self._look_in:
            self._look_in = LOOK_EVERY
            self._look(sorted(recent))
        known = self.first_s
        if known:
            p95 = self.first_p95_s
            p95 *= 1.0 + 0.95 * P95_STEP if first_s > p95 else 1.0 - 0.05 * P95_STEP
            if first_s > CLIP * known:
                first_s = CLIP * known
            gap = now - self.first_at
            self.first_s = known + (ALPHA if gap < _GAP_S else 1.0 - exp(-gap / TIME_CONSTANT_S)) * (first_s - known)
        else:
            self.first_s = first_s if first_s > 1e-6 else 1e-6
            p95 = P95_START * self.first_s
        self.first_at = now
        self.first_p95_s = p95
        stall = STALL_FACTOR * p95
        self.stall_s = stall if stall > STALL_MIN_S else STALL_MIN_S
        return since

    def _look(self, recent: list[float]) -> None:
        """Compare the latest first tokens with the usual ones."""
        if len(recent) < RECENT_MAX:
            return
        self.first_low_s = low = recent[RECENT_MAX // 4]
        high = recent[3 * RECENT_MAX // 4]
        if not self.first_usual_s:
            self.first_usual_s = high
        elif low <= self.first_usual_s:
            # What a queue makes of them is not usual, and is not learned from.
            self.first_usual_s += USUAL_ALPHA * (high - self.first_usual_s)

    def finished(self, call: int, now: float, tokens: int) -> None:
        """A call ended well with `tokens` of output (0: not told). Said twice it counts once."""
        if call < 0:
            since = self._plain.pop(call, None)
            if since is None:
                return
            if now - self._total_at > SAMPLE_S:
                self._note_total(now, now - since, tokens)
        else:
            since = self._streaming.pop(call, None)
            if since is None:
                self._forget(call)  # a stream without content: nothing is known of its speed
            elif tokens > 1 and now > since:
                speed = (tokens - 1) / (now - since)
                known = self.tokens_per_s
                if known:
                    if speed > CLIP * known:
                        speed = CLIP * known
                    gap = now - self._speed_at
                    speed = known + (ALPHA if gap < _GAP_S else 1.0 - exp(-gap / TIME_CONSTANT_S)) * (speed - known)
                self.tokens_per_s = speed
                self._speed_at = now
        if self.errors:
            self.errors *= 1.0 - ALPHA
            if self.errors < 1e-3:
                self.errors = 0.0

    def failed(self, call: int, now: float) -> bool:
        """A call failed in a way that speaks against the provider. It tells nothing of latency.

        Returns whether content had come before.
        """
        answered = call in self._streaming
        self._forget(call)
        # Time lets somebody try again; it is no evidence. The first failure says that nothing has changed.
        errors = self.errors if now - self.errors_at < ERRORS_CONFIRMED_S else self.error_rate(now)
        self.errors = errors + ALPHA * (1.0 - errors)
        self.errors_at = now
        return answered

    def abandoned(self, call: int) -> None:
        """A call ended without saying anything: the client left, a 4xx, a 429."""
        self._forget(call)

    def outrun(self, call: int, now: float, reading_s: float = 0.0) -> bool:
        """A call was given up because another had content first. Returns whether its wait speaks against it.

        Beyond twice the 95th percentile it counts as a failure, else as a first token of at least that long; but for
        `reading_s` that its prompt may take.
        Never does it move the percentile: timers that follow from it would grow with every wait they cut.
        """
        since = self._unanswered.get(call)
        if since is None:
            self._forget(call)
            return False
        waited_s, p95 = now - since - reading_s, self.first_p95_s
        if p95 and waited_s > OUTRUN_FACTOR * p95:
            self.failed(call, now)
            return True
        if self.first_s and waited_s > self.first_s:
            self.first_s += ALPHA * (min(waited_s, CLIP * self.first_s) - self.first_s)
            self.first_at = now
        self._forget(call)
        return False

    def forgive(self) -> None:
        """Forget errors (the breaker has closed: what it saw was the time before)."""
        self.errors = 0.0

    # -- what is known ---------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Calls under way."""
        return len(self._unanswered) + len(self._streaming) + len(self._plain)

    @property
    def unanswered(self) -> int:
        """Streams under way that have no content yet."""
        return len(self._unanswered)

    @property
    def newest_at(self) -> float:
        """When the youngest stream without content began, 0 without one."""
        return next(reversed(self._unanswered.values()), 0.0)

    def error_rate(self, now: float) -> float:
        """The error EWMA, 0 … 1, decayed by the time without a failure."""
        errors = self.errors
        if not errors:
            return 0.0
        idle = now - self.errors_at
        if idle <= ERRORS_HELD_S:
            return errors
        left = (ERRORS_GONE_S - idle) / (ERRORS_GONE_S - ERRORS_HELD_S)
        return errors * left if left > 0.0 else 0.0

    @property
    def answered_at(self) -> float:
        """When a first content or a plain answer last came, NONE_AT when none ever did."""
        return max(self.first_at if self.first_s else NONE_AT, self._total_at)

    def oldest_s(self, now: float) -> float:
        """Age of the oldest stream that has no content yet, 0 without one."""
        return max(0.0, now - self.oldest_at)

    def latency_s(self, now: float, tokens: float) -> float:
        """Expected seconds for an answer of `tokens`, 0 when nothing is known.

        First token plus tokens by speed; a stream that has waited longer than `stall_s` counts as a first
        token of its age. Where only plain calls were seen, their total time, scaled by length.
        """
        first = self.first_s
        age = now - self.oldest_at
        if age > self.stall_s and age > first:
            first = age
        if self.first_s:
            return first + tokens / self.tokens_per_s if self.tokens_per_s else first
        total = self.total_s
        if total:
            if self._plain:
                for since in self._plain.values():
                    if now - since > STALL_FACTOR * CLIP * total:
                        total = now - since
                    break
            return total * tokens / self.total_tokens if self.total_tokens else total
        return first if age > self.stall_s else 0.0

    # -- within ----------------------------------------------------------------------------------------

    def _note_total(self, now: float, total_s: float, tokens: int) -> None:
        known = self.total_s
        if not known:
            self.total_s = max(total_s, 1e-6)
            self.total_tokens = float(tokens)
        else:
            gap = now - self._total_at
            alpha = ALPHA if gap < _GAP_S else 1.0 - exp(-gap / TIME_CONSTANT_S)
            self.total_s = known + alpha * (min(total_s, CLIP * known) - known)
            if tokens:
                self.total_tokens += (alpha if self.total_tokens else 1.0) * (tokens - self.total_tokens)
        self._total_at = now

    def _forget(self, call: int) -> None:
        if call < 0:
            self._plain.pop(call, None)
            return
        since = self._unanswered.pop(call, None)
        if since is None:
            self._streaming.pop(call, None)
        elif since <= self.oldest_at:
            self.oldest_at = next(iter(self._unanswered.values()), NEVER)
