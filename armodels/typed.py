"""From what was typed to what Hydra reads: names and paths are text exactly as they stand.

Hydra's grammar takes 2024_11_26 for a number, true for a switch, and trips over brackets, commas,
quotes and umlauts. Here every key that holds a name or a path gets its value quoted, and words
that no verb can take are refused in one sentence before Hydra sees them.
"""

import difflib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator

from armodels import show

TEXT = frozenset(
    "run resume background out image mask table file draft prompt prompt_file logdir path root "
    "cache name split target group game array storage teacher delimiter decimal thousands "
    "encoding".split()
)
"""Last parts of the keys that hold one name or path, in the configs of verbs and of data."""

LISTS = frozenset(
    "runs words tags columns drop known of given against layers trust logger".split()
)
"""Last parts of the keys that hold several names; a whole number counts columns."""

VALUE_FLAGS = frozenset(
    "--config-dir -cd --config-path -cp --config-name -cn --cfg -c --package -p --info -i "
    "--experimental-rerun".split()
)
"""Flags of Hydra that are followed by a value."""

FLAGS = VALUE_FLAGS | frozenset(
    "--help -h --hydra-help --version --resolve --run -r --multirun -m --shell-completion "
    "-sc".split()
)
"""All flags of Hydra."""

_KEY = r"(?:~|\+{0,2})[A-Za-z_$][\w$./@:-]*"
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_FUNCTION = re.compile(r"(choice|glob|range|interval|shuffle|sort|tag|str)\(.*\)", re.DOTALL)


def is_sweep(args: Collection[str]) -> bool:
    """Whether several jobs are asked for, so that commas separate choices."""
    return "-m" in args or "--multirun" in args


def again(verb: str, args: Collection[str]) -> str:
    """The same command; of a sweep of trainings, one that goes on with it.

    Args:
        verb: The verb.
        args: As they came from the shell, after it.
    """
    more = ["skip_done=true"] if verb == "train" and is_sweep(args) else []
    return " ".join(["armodels", verb, *map(show.shell, dict.fromkeys([*args, *more]))])


def translate(
    args: Iterable[str],
    *,
    verb: str,
    path_key: str | None = None,
    many: bool = False,
    flags: Collection[str] = (),
    suggest: Callable[[str, str], str] = lambda key, value: "",
) -> list[str]:
    """Words of the command line as Hydra's own.

    Args:
        args: As they come from the shell, after the verb.
        verb: For sentences.
        path_key: Key that a bare path stands for.
        many: Whether several bare paths may stand there.
        flags: Of the verb alone; they pass.
        suggest: What to write instead of a key that is none, and its value.

    Raises:
        ValueError: A word cannot be taken, with what to write instead.
    """
    args = list(args)
    _refuse_blanks(args)
    sweep = is_sweep(args)
    if not sweep and not {"--cfg", "-c", "--info", "-i"} & {*args}:  # shown, none is started
        _refuse_launcher(args, verb)
    paths: list[str] = []
    rest: list[str] = []
    words = iter(args)
    for word in words:
        flag = word.partition("=")[0]
        if word in flags:
            rest.append(word)
        elif re.match(r"-+\w", word):
            if flag not in FLAGS:
                raise ValueError(_unknown_flag(word, words, suggest, [*FLAGS, *flags]))
            value = _value_of(word, words)
            rest += [word] if "=" in word or value is None else [word, value]
        elif _is_override(word, path_key):
            rest.append(_override(word, sweep, suggest))
        elif path_key:
            paths.append(word)
        else:
            raise ValueError(_stray(word, rest, verb, suggest))
    if not paths:
        return rest
    if keyed := [item for item in rest if _key_of(item) == path_key]:
        raise ValueError(_several(verb, keyed[0], paths, many))
    if len(paths) > 1 and not many:
        whole = " ".join(paths)
        raise ValueError(
            f"armodels {verb} takes one path, got {whole}; "
            f"a path with blanks is quoted: {show.shell(whole)}"
        )
    return [f"{path_key}={show.hydra(paths if many else paths[0])}", *rest]


def _refuse_launcher(args: Iterable[str], verb: str) -> None:
    """Raise ValueError where the jobs of a sweep are spoken of, and there is none."""
    for word in args:
        if word.lstrip("+").startswith(("hydra/launcher=", "hydra.launcher.")):
            search = (
                "; several workers of a search are the same command in several shells"
                if verb == "tune"
                else ""
            )
            raise ValueError(f"{word} is about the jobs of a sweep, which needs -m{search}")


def _is_override(word: str, path_key: str | None) -> bool:
    """``key=value``, ``~key``, and not a path of which a later part holds an equals sign."""
    if re.fullmatch(r"~[A-Za-z_][\w.@]*", word):
        return True
    return "=" in (word.split("/")[0] if path_key and not word.startswith("hydra/") else word)


def _key_of(item: str) -> str:
    return item.partition("=")[0].lstrip("+~")


def _several(verb: str, keyed: str, paths: list[str], many: bool) -> str:
    """What is wrong with a path under its key, ``keyed``, beside bare ones."""
    bare = " ".join(paths)
    whole = show.shell(f"{keyed.partition('=')[2]} {bare}")
    instead = "name all of them bare" if many else f"a path with blanks is quoted: {whole}"
    return f"armodels {verb} got both {keyed} and {bare}; {instead}"


_ONE_OF = {"--cfg": "job hydra all",
           "--info": "all config defaults defaults-tree plugins searchpath"}  # fmt: skip


def _value_of(word: str, words: Iterator[str]) -> str | None:
    """The value of a flag, in the same word or in the next."""
    flag, sign, value = word.partition("=")
    if flag not in VALUE_FLAGS:
        return None
    if not sign:
        value = next(words, "")
    flag = {"-c": "--cfg", "-i": "--info", "-p": "--package"}.get(flag, flag)
    allowed = _ONE_OF.get(flag, "").split()
    if not value and flag != "--info":
        raise ValueError(f"{flag} needs a value, such as {flag} {(allowed or ['conf'])[0]}")
    if value and allowed and value not in allowed:
        several = " or ".join([", ".join(allowed[:-1]), allowed[-1]])
        raise ValueError(f"{flag} is {value!r}; choose {several}")
    return value or None


def _refuse_blanks(args: list[str]) -> None:
    """Blanks around an equals sign, and within a list, make several words of one."""
    for i, word in enumerate(args):
        after = args[i + 1 : i + 2]
        key, sign, value = word.partition("=")
        if word[:1] == "=" and i and re.fullmatch(_KEY, args[i - 1]):
            value = value or "".join(after) or "VALUE"
            raise ValueError(_without_blanks(args[i - 1], value))
        if sign and re.fullmatch(rf"{_KEY}\s+", key):
            raise ValueError(_without_blanks(key.strip(), value.strip()))
        if sign and re.fullmatch(_KEY, key) and not value.strip():
            if after and "=" not in after[0] and not after[0].startswith("-"):
                raise ValueError(_without_blanks(key, after[0]))
            raise ValueError(
                f"{key}= has no value; write {key}=VALUE, or {show.override(key, None)} for none"
            )
        last = _last(key)
        if sign and value[:1] in "[{" and last not in TEXT and _open(value):
            whole, rest = value, args[i + 1 :]
            while rest and _open(whole):
                whole += " " + rest.pop(0)
            if _open(whole):
                raise ValueError(
                    f"{key}={value} opens a bracket and does not close it; a list is one word, "
                    f"such as {key}=[{value.strip('[]{},')}]"
                )
            close = re.sub(r"\s*([\[\]{},:])\s*", r"\1", whole)
            raise ValueError(
                f"{key}={value} is cut at a blank; write {key}={close} without blanks, "
                f"or quote it for the shell: '{key}={whole}'"
            )


def _without_blanks(key: str, value: str) -> str:
    return f"{key} = {value} is several words; write {key}={show.shell(value)} without blanks"


def _open(value: str) -> bool:
    """Whether brackets that are opened are not closed."""
    bare = _QUOTED.sub("", value)
    return any(bare.count(a) > bare.count(b) for a, b in (("[", "]"), ("{", "}")))


def _unknown_flag(
    word: str,
    words: Iterator[str],
    suggest: Callable[[str, str], str],
    known: list[str],
) -> str:
    flag, sign, value = word.partition("=")
    if close := difflib.get_close_matches(flag, known, 1, 0.8):
        return f"{flag} is no flag of armodels; did you mean {close[0]}?"
    if not sign:
        value = next(words, "")
        if value.startswith("-") or "=" in value:
            value = ""
    key = flag.lstrip("-").replace("-", "_")
    hint = "" if "." in key else suggest(key, value)
    hint = hint or f"{key}={value or 'VALUE'}"
    return f"{flag} is no flag of armodels: settings are written key=value, such as {hint}"


def _stray(word: str, before: list[str], verb: str, suggest: Callable[[str, str], str]) -> str:
    if hint := suggest("", word):
        return f"{word!r} is no key=value; did you mean {hint}?"
    if before and _last(_key_of(before[-1])) in TEXT | LISTS:
        key, _, value = before[-1].partition("=")
        whole = f"{value} {word}"
        return (
            f"{word!r} is no key=value; a value with blanks is quoted for the shell: "
            f"{show.override(key, whole)}"
        )
    return f"{word!r} is no key=value; see armodels {verb} --help"


def _last(key: str) -> str:
    return key.lstrip("+~").rpartition(".")[2]


def _override(word: str, sweep: bool, suggest: Callable[[str, str], str]) -> str:
    """One ``key=value``, its value quoted for Hydra where the key holds text."""
    key, sign, value = word.partition("=")
    if not re.fullmatch(_KEY, key, re.ASCII):
        hint = suggest(key, value)
        hint = f"did you mean {hint}?" if hint else f"a path that holds = is written ./{word}"
        raise ValueError(f"{key!r} is no key; {hint}")
    last = _last(key)
    if not sign or value == "null" or last not in TEXT | LISTS:
        return word
    typed = _listed(key, value, sweep) if last in LISTS else _text(key, value, sweep)
    return f"{key}={typed}"


def _text(key: str, value: str, sweep: bool) -> str:
    """A value as one text, or in a sweep as several."""
    if _QUOTED.fullmatch(value):
        return value
    if "." in key and re.fullmatch(r"\[.*\]", value, re.DOTALL):  # of a user's own class
        return value
    parts = _split(value)
    if not sweep:  # quoted choices are those of a sweep, which Hydra refuses
        if key == "prompt":  # a text, in which ${ is no reference
            return show.hydra(value)
        return value if all(map(_QUOTED.fullmatch, parts)) else quoted(value)
    if _FUNCTION.fullmatch(value) or len(parts) == 1:
        return value if _FUNCTION.fullmatch(value) else quoted(value)
    if "" in parts or any(map(_unclear, parts)) or os.path.exists(value):
        several = ",".join(f"'{part}'" for part in value.split(","))
        raise ValueError(
            f"{key}={value} may be one name, or several to sweep over: quote the one as "
            f"{show.shell(f'{key}={quoted(value)}')}, or each of several as "
            f"{show.shell(f'{key}={several}')}"
        )
    return ",".join(part if _QUOTED.fullmatch(part) else quoted(part) for part in parts)


def _unclear(part: str) -> bool:
    """Whether the comma beside it may belong to a name: a bracket or quote is not closed."""
    bare = _QUOTED.sub("", part)
    pairs = (("[", "]"), ("(", ")"), ("{", "}"))
    return any(bare.count(a) != bare.count(b) for a, b in pairs) or any(q in bare for q in "'\"")


def _split(value: str) -> list[str]:
    """Parts between commas that stand outside quotes."""
    parts, start = [], 0
    for i, sign in enumerate(_QUOTED.sub(lambda m: "x" * len(m.group()), value)):
        if sign == ",":
            parts.append(value[start:i].strip())
            start = i + 1
    return [*parts, value[start:].strip()]


def _listed(key: str, value: str, sweep: bool) -> str:
    """A list of names with each of them quoted; a bare name stays one."""
    names_only = _last(key) in ("runs", "tags")

    def one(part: str) -> str:
        if _QUOTED.fullmatch(part) or part == "null":
            return part
        if not names_only and re.fullmatch(r"-?(0|[1-9][0-9]*)", part):
            return part
        return quoted(part)

    inner = re.fullmatch(r"\[(.*)\]", value, re.DOTALL)
    if inner is None and key == "logger":  # nobody sweeps over them: a comma never means that
        return f"[{','.join(one(part) for part in _split(value))}]"
    if inner is None:
        if "," in value and not sweep:
            return value  # which Hydra refuses: a list has brackets
        return ",".join(one(part) for part in _split(value))
    if re.search(r"\]\s*,\s*\[", value):  # lists to choose from
        return value
    parts = _split(inner.group(1))
    return f"[{','.join(one(part) for part in parts)}]" if parts != [""] else "[]"


def quoted(text: str) -> str:
    """``text`` as Hydra's command line has it; ${...} in it stays a reference."""
    return show.hydra(text, references=True)
