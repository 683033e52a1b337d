"""The special tokens that a model's texts are written with, held against what its tokenizer does.

A last-token model pools the token at the very end, so a tokenizer that leaves it out still gives plausible vectors,
and wrong ones: without its </s>, e5-mistral's are at a cosine of 0.33 to the right ones. A model's row says what stands
at both ends; of other models `tokenizer_config.json` may say it. transformers goes by that only where there is no
tokenizer.json (from release 5 on), so the two are compared for every repository.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from encoders.errors import UnsupportedModelError
from encoders.family import Family
from encoders.protocol import Protocol


@dataclass(frozen=True)
class Ends:
    """Ids of the special tokens that every text begins and ends with; None where nothing is known of them."""

    first: int | None = None
    last: int | None = None


def settle_ends(protocol: Protocol, tokenizer: Any) -> Ends:
    """Make sure that a tokenizer (its fast backend) puts around a text what the model's row and its own files say.

    Raises:
        UnsupportedModelError: It does something else, or does not know the tokens.
    """
    family, backend = protocol.family, tokenizer.backend_tokenizer
    ends = Ends()
    if family is not None:
        ends = _settle_row(protocol, family, backend)
        _check_control_tokens(protocol, family, backend)
    _check_own_files(protocol, tokenizer)
    return ends


def _settle_row(protocol: Protocol, family: Family, backend: Any) -> Ends:
    model = protocol.repository.name
    ends = Ends(
        _id_of(family.first_token, backend, model),
        _id_of(family.last_token, backend, model),
    )
    if not protocol.repository.is_local and family.last_token_id not in (None, ends.last):
        raise UnsupportedModelError(
            f"{model}: its tokenizer gives {family.last_token!r} the id {ends.last}, and the row says "
            f"{family.last_token_id}"
        )
    if family.ends == "added":
        _put_around(ends, backend)
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


def _around(backend: Any) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before a text and behind it."""
    encoding = backend.encode("a")
    is_own = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
    first, last = (is_own[0], is_own[-1]) if is_own else (len(encoding), len(encoding))
    return encoding.ids[:first], encoding.ids[last + 1 :]


def _put_around(ends: Ends, backend: Any) -> None:
    """The tokens of a row in place of those that the tokenizer has there; where the row is silent these stay."""
    from tokenizers.processors import TemplateProcessing

    found = _around(backend)
    before, behind = (
        there if token is None else [token]
        for token, there in zip((ends.first, ends.last), found, strict=True)
    )
    if (before, behind) == found:
        return
    words = [[backend.id_to_token(token) for token in tokens] for tokens in (before, behind)]
    known = {word: backend.token_to_id(word) for word in (*words[0], *words[1])}
    pattern = " ".join((*words[0], "$A", *words[1]))
    backend.post_processor = TemplateProcessing(single=pattern, pair=None, special_tokens=list(known.items()))


def _check_control_tokens(protocol: Protocol, family: Family, backend: Any) -> None:
    """Another vocabulary would split a prompt's control tokens into characters."""
    split = [
        token
        for token in family.control_tokens
        if len(backend.encode(token, add_special_tokens=False).ids) != 1
    ]
    if split:
        raise UnsupportedModelError(
            f"{protocol.repository.name}: its tokenizer does not know {', '.join(split)}, and the prompts of "
            f"{family.name} are written with them; fetch the tokenizer's files anew, or name the model's own row"
        )


def _check_own_files(protocol: Protocol, tokenizer: Any) -> None:
    """What tokenizer_config.json says of both ends, at those of which no row speaks.

    Raises:
        UnsupportedModelError: The tokenizer does something else.
    """
    family, pooling = protocol.family, protocol.pooling.modes[0]
    loaded_from = Path(tokenizer.name_or_path)  # on this machine, which may not be the one that resolved
    here = replace(protocol.repository, path=loaded_from)
    stated = here.json_object("tokenizer_config.json")
    before, behind = _around(tokenizer.backend_tokenizer)
    for end, added, field in (("bos", before[:1], "first_token"), ("eos", behind[-1:], "last_token")):
        token, said = getattr(tokenizer, f"{end}_token"), stated.get(f"add_{end}_token")
        row_speaks = family is not None and (family.ends == "none" or getattr(family, field) is not None)
        if row_speaks or token is None or not isinstance(said, bool):
            continue
        does = added == [tokenizer.convert_tokens_to_ids(token)]
        if does == said:
            continue
        raise UnsupportedModelError(
            f"{protocol.repository.name}: tokenizer_config.json says add_{end}_token={str(said).lower()}, and the "
            f"tokenizer of tokenizer.json puts {'a' if does else 'no'} {token!r} "
            f"{'before' if end == 'bos' else 'behind'} every text; find out which of the two the model was trained "
            f"with. With it, give a protocol that says so: encoder.protocol={{pooling: {pooling}, {field}: '{token}', "
            "ends: added, prompts: ...}; without it, correct the file that is wrong, in a copy of the repository"
        )
