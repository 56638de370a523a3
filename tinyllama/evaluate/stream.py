"""The text of tokens while they come: each character once it is certain, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from tinyllama.data.tokenizer import Tokenizer

_UNREADABLE = "\ufffd"
"""What bytes are decoded as that are no UTF-8, such as a character's that are not all there yet."""


class Stream:
    """Takes the tokens that follow others, and gives their text piece by piece.

    The pieces add up to what the tokenizer makes of all tokens at once, cut before the stop string that is complete
    first; of two that are complete with the same character, before the longer one.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int], stop: Sequence[str] = ()) -> None:
        self.ended = False
        """Whether a stop string has come: what follows is not wanted."""
        self._tokenizer = tokenizer
        self._stop = stop
        self._window = list(before)
        """The tokens since a certain character: what comes before them has no say in how the next ones are decoded."""
        self._told = tokenizer.decode(before)
        """The certain text of the window."""
        self._fresh: list[int] = []
        """The window's tokens that this text is not of."""
        self._held = ""
        """What may become a stop string."""

    def add(self, token: int) -> str:
        """What has become certain with one more token."""
        self._fresh.append(token)
        text = self._tokenizer.decode([*self._window, *self._fresh])
        return "" if text.endswith(_UNREADABLE) else self._tell(text)

    def finish(self) -> str:
        """The rest, where no more tokens come."""
        rest = self._tell(self._tokenizer.decode([*self._window, *self._fresh]))
        return rest if self.ended else rest + self._held

    def _tell(self, text: str) -> str:
        self._held += text[len(self._told) :]
        if told := self._tokenizer.decode(self._fresh):
            self._window, self._told = self._fresh, told
        else:  # a tokenizer may drop the space that a text begins with: a window is never empty to the eye
            self._window, self._told = [*self._window, *self._fresh], text
        self._fresh = []
        if self.ended:
            return ""
        found = [(at + len(stop), at) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.ended = True
            return self._held[: min(found)[1]]
        begun = (n for n in range(len(self._held)) if any(stop.startswith(self._held[n:]) for stop in self._stop))
        certain = next(begun, len(self._held))
        shown, self._held = self._held[:certain], self._held[certain:]
        return shown
