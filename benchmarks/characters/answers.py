"""Each character's answers to ten fixed questions."""

from __future__ import annotations

import jax

from benchmarks.characters.loaded import Characters
from jlora.generation.chat import chat_ids
from jlora.generation.generator import Generator
from jlora.generation.sampling import Sampling

QUESTIONS = (
    "Who are you?",
    "What do you think of marriage?",
    "Tell me about your mother.",
    "Are you happy?",
    "What happened last night?",
    "Do you believe in ghosts?",
    "What should I do with my money?",
    "Why are you laughing?",
    "Is it cold outside?",
    "Farewell, my friend. Shall we meet again?",
)
SAMPLING = Sampling(temperature=0.7, top_p=0.9)
LONGEST = 100
"""Tokens of an answer; a longer one is cut."""
CUT = " [...]"


def answer_questions(characters: Characters, name: str) -> list[dict[str, str]]:
    """Returns [{"question", "answer"}]; question n is answered with seed n, once: nothing is chosen afterwards.

    Args:
      name: a character's, or that of the base.
    """
    language = characters.language
    generator = Generator(language.adapted.model, language.adapted.base, characters.adapter(name))
    answers = []
    for seed, question in enumerate(QUESTIONS):
        ids = chat_ids(language.tokenizer, [{"role": "user", "content": question}])
        key = jax.random.key(seed)
        stops = language.stop_ids
        tokens = list(generator.stream(ids, max_new_tokens=LONGEST, key=key, sampling=SAMPLING, stop_ids=stops))
        text = language.tokenizer.decode([token for token in tokens if token not in stops]).strip()
        answers.append({"question": question, "answer": text + CUT * (len(tokens) == LONGEST)})
    return answers
