"""What calls of a model cost: estimated before, counted after, never above the budget by what can be known."""

import threading
from dataclasses import dataclass, replace

from services.researcher.protocol import ModelBudget, ModelFailed, ModelUsage

MIN_OUTPUT = 256  # tokens; an answer cut shorter is of no use, so it is not asked for
OVERHEAD = 4096  # tokens a provider may add to what is sent: the form of the answer, turns, its own instructions
ASCII_PER_TOKEN = 3  # characters; English takes about 4, code about 3
REPORTED_MAX = 2**53  # a count above this is no count


@dataclass(frozen=True, slots=True)
class Prices:
    """Price of a million tokens. 0: not configured."""

    input: float = 0.0
    output: float = 0.0

    def micros(self, input_tokens: int, output_tokens: int) -> int:
        """Returns the cost in millionths of the currency, rounded up."""
        return -int(-(input_tokens * self.input + output_tokens * self.output) // 1)


def estimate(text: str) -> int:
    """Returns about how many tokens a text takes, rather more than less."""
    ascii_only = sum(character.isascii() for character in text)
    return ascii_only // ASCII_PER_TOKEN + (len(text) - ascii_only) + 1


class Meter:
    """Counts one research's calls against its budget. Thread-safe."""

    def __init__(self, budget: ModelBudget, prices: Prices) -> None:
        self._budget = budget
        self._prices = prices
        self._lock = threading.Lock()
        self._usage = ModelUsage()

    @property
    def usage(self) -> ModelUsage:
        """What was spent so far."""
        return self._usage

    def calls_left(self) -> int:
        """Returns how many calls the budget still allows."""
        return max(0, self._budget.calls - self._usage.calls)

    def room(self, most: int) -> int:
        """Returns how many tokens may still be sent when an answer of `most` tokens is to fit too."""
        left = self._budget.tokens - self._usage.input_tokens - self._usage.output_tokens - most
        if self._money_bound() and self._prices.input > 0:
            money = self._money_left() - most * self._prices.output
            if left * self._prices.input > money:  # a price next to nothing would make it infinite
                left = int(money / self._prices.input)
        return left

    def begin(self, sent: int, most: int) -> int:
        """Counts a call before it is made; returns how long its answer may be, in tokens.

        Args:
            sent: tokens about to be sent.
            most: tokens of the longest answer that is of use.

        Raises ModelFailed when the budget allows no call, or none with an answer worth having.
        """
        with self._lock:
            if self.calls_left() == 0:
                raise ModelFailed(f"All {self._budget.calls} calls of the model that the budget allows are used.")
            left = self._budget.tokens - self._usage.input_tokens - self._usage.output_tokens - sent
            if left < MIN_OUTPUT:
                raise ModelFailed(
                    f"The budget of {self._budget.tokens} model tokens has no room for a question of about {sent}."
                )
            allowed = min(most, left, self._affordable(sent, most))
            if allowed < MIN_OUTPUT:
                raise ModelFailed("The budget of money for the model has no room for another call.")
            self._usage = replace(self._usage, calls=self._usage.calls + 1)
            return allowed

    def spend(self, input_tokens: int, output_tokens: int) -> None:
        """Adds what a call took."""
        with self._lock:
            inputs = self._usage.input_tokens + input_tokens
            outputs = self._usage.output_tokens + output_tokens
            cost = self._prices.micros(inputs, outputs)
            self._usage = replace(self._usage, input_tokens=inputs, output_tokens=outputs, cost_micros=cost)

    def _money_bound(self) -> bool:
        return self._budget.cost_micros > 0 and (self._prices.input > 0 or self._prices.output > 0)

    def _money_left(self) -> int:
        return self._budget.cost_micros - self._usage.cost_micros

    def _affordable(self, sent: int, most: int) -> int:
        if not self._money_bound():
            return most
        left = self._money_left() - self._prices.micros(sent, 0)
        if left <= 0:
            return 0
        return most if most * self._prices.output <= left else int(left / self._prices.output)


def believed(reported: int, estimated: int, bound: int) -> int:
    """Returns the count to reckon with: the provider's where it can be true, else the estimate or the most possible.

    A provider that leaves the count out reports 0; one that counts nonsense must not make a budget overflow or last
    for ever.
    """
    if not 0 < reported <= REPORTED_MAX:
        return min(estimated, bound)
    return min(reported, bound)
