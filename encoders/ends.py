"""The special tokens at both ends of every text, held against what the model's row says of them.

A last-token model pools the token at the very end, so a tokenizer that leaves it out still gives plausible vectors,
and wrong ones: without its </s>, e5-mistral's are at a cosine of 0.33 to the right ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from encoders.errors import UnsupportedModelError
from encoders.family import Family
from encoders.protocol import Protocol


@dataclass(frozen=True)
class Ends:
    """Ids of the special tokens that every text begins and ends with; None where nothing is known of them."""

    first: int | None = None
    last: int | None = None


def settle_ends(protocol: Protocol, backend: Any) -> Ends:
    """Make sure that a tokenizer (the fast backend) puts around a text what the model's row says.

    Raises:
        UnsupportedModelError: It does something else, or does not know the tokens.
    """
    family, model = protocol.family, protocol.repository.name
    if family is None:
        return Ends()
    ends = Ends(
        _id_of(family.first_token, backend, model),
        _id_of(family.last_token, backend, model),
    )
    if not protocol.repository.is_local and family.last_token_id not in (None, ends.last):
        raise UnsupportedModelError(
            f"{model}: its tokenizer gives {family.last_token!r} the id {ends.last}, and the row says "
            f"{family.last_token_id}"
        )
    added = backend.encode("").ids
    if family.ends == "added" and added != [token for token in (ends.first, ends.last) if token is not None]:
        _put_around(family, ends, backend)
        added = backend.encode("").ids
    wrong = (
        (family.ends == "none" and added)
        or (ends.first is not None and added[:1] != [ends.first])
        or (ends.last is not None and (added[-1:] != [ends.last] or added.count(ends.last) > 1))
    )
    if wrong:
        shown = [backend.id_to_token(token) for token in added]
        wanted = (
            "none at all"
            if family.ends == "none"
            else f"{family.first_token or 'any'} first and {family.last_token or 'any'} last"
        )
        raise UnsupportedModelError(
            f"{model}: its tokenizer puts the special tokens {shown} around a text, and the row of {family.name} says "
            f"{wanted}; with others every vector would be a wrong one. Fetch the tokenizer's files anew"
        )
    return ends


def _id_of(token: str | None, backend: Any, model: str) -> int | None:
    if token is None:
        return None
    number: int | None = backend.token_to_id(token)
    if number is None:
        raise UnsupportedModelError(
            f"{model}: its row wants the special token {token!r} at an end of every text, and its tokenizer "
            "has none such"
        )
    return number


def _put_around(family: Family, ends: Ends, backend: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    pairs = ((family.first_token, ends.first), (family.last_token, ends.last))
    known = [(token, number) for token, number in pairs if token is not None]
    pattern = " ".join(filter(None, (family.first_token, "$A", family.last_token)))
    backend.post_processor = TemplateProcessing(single=pattern, pair=None, special_tokens=known)
