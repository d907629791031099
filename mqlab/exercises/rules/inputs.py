"""Inputs that differ from check to check, so that no answer is right by heart or by luck."""

from __future__ import annotations

import random

draw = random.SystemRandom()
"""Not the generator that an answer may have seeded."""
ODD_TEXTS = (
    *("", " ", "0", "None", "naïve café", "отчёт за год", "日本語のレポート", "تقرير سنوي", "דוח"),
    *("📊 \U0001f469\u200d\U0001f4bb", "e\u0301le\u0300ve", "\u202eback\u202c", "two\r\nlines\t"),
    *("\x00", '{"task_id": "x"}', "\ufefftask", "é" * 90_000),
)


def some_texts(least: int, most: int) -> list[str]:
    """Draw texts of all kinds, some of them twice, ``least`` to ``most`` in number."""
    count = draw.randint(least, most)
    twice = count // 6
    odd = draw.sample(ODD_TEXTS, min(len(ODD_TEXTS), count - twice))
    texts = odd + [f"report {n:06}" for n in draw.sample(range(10**6), count - twice - len(odd))]
    texts += draw.sample(texts, twice)
    draw.shuffle(texts)
    return texts
