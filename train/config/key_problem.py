"""`KeyProblem`: what a check across several keys of a config says of one of them."""

from __future__ import annotations


class KeyProblem(ValueError):
    """One key's value does not go with another key's.

    Attributes:
      key: the dotted key, such as `lora.from`.
      problem: what was expected and what was found.
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key, self.problem = key, problem
