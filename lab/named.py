"""Code that somebody names: `nets.py:TinyNet` of a file, `package.module:Name` of an installed package.

A file is read by its path, relative to the folder one stands in. It becomes a module whose name is a function of that path,
so that two loads give one class; where it has changed since, it is read anew. The folder of the file can be imported from
while its code runs, and what the file draws while it is read is of the seed 0. What is wrong with the name, and what the
code raises, is one line: a SettingError.

Naming code is running it: nothing here is to be called with a path that was read from a file.
"""

import difflib
import hashlib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, ClassVar

from pydantic import Field

from lab.settings import SettingError, settings

FORM = "expected FILE.py:NAME or PACKAGE.MODULE:NAME"


@settings()
class NamedCode:
    """A class or a function of somebody's own, with the arguments it is called with. What it is for, a subclass says.

    group  of the settings; takes: what the code is given before its arguments, in words of its signature.
    """

    group: ClassVar[str]
    example: ClassVar[str]
    takes: ClassVar[tuple[str, ...]] = ()
    path: Annotated[
        str, Field(description="FILE.py:NAME, relative to where you are, or PACKAGE.MODULE:NAME; must be set")
    ] = ""
    args: Annotated[
        dict[str, Any], Field(description="what it is called with: args.NAME=VALUE, of numbers, texts, lists, mappings")
    ] = Field(default_factory=dict)

    @property
    def setting(self) -> str:
        """The path as it was typed."""
        return f"{self.group}.path={self.path}"

    def check(self) -> None:
        """Raise SettingError, one line, for code that cannot be loaded or does not take the arguments."""
        if not self.path:
            raise SettingError(
                f"{self.group}.path is missing: name your code, e.g. {self.group}=own {self.group}.path={self.example}"
            )
        self.require_fit(self.loaded())

    def loaded(self) -> Callable[..., Any]:
        """The class or function. Raises SettingError as `load` does."""
        return load(self.path, f"{self.group}.path")

    def require_fit(self, code: Callable[..., Any]) -> None:
        """Raise SettingError where the arguments are not those of its signature."""
        require_fit(code, self.args, self.group, self.path, self.takes)


def load(path: str, setting: str) -> Callable[..., Any]:
    """The object that `path` names; `setting` has the path, in what is said of it. It can be called.

    >>> load("math:hypot", "model.path")(3, 4)
    5.0

    Raises SettingError, one line, where there is none: no colon, no such file or module, no such name in it, nothing that
    can be called, an exception while it was loaded (what, and in which line).
    """
    where, _, name = path.rpartition(":")
    if not where or not name:
        raise SettingError(f"{setting}={path} names no object; {FORM}, e.g. nets.py:TinyNet")
    file = file_of(path)
    module = _of_package(where, name, path, setting) if file is None else _of_file(file, path, setting)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise SettingError(f"{setting}={path}: {where} has no {name}{_near(name, vars(module))}")
        found = getattr(found, part)
    if not callable(found):
        raise SettingError(f"{setting}={path} is of type {type(found).__name__}; expected a class or a function")
    return found


def require_fit(
    code: Callable[..., Any], args: Mapping[str, Any], group: str, path: str, takes: tuple[str, ...] = ()
) -> None:
    """Raise SettingError, one line, where `code` cannot be called with as many values as `takes` names, and then `args`."""
    try:
        signature = inspect.signature(code)
    except (TypeError, ValueError):  # written in C
        return
    try:
        signature.bind(*takes, **args)
    except TypeError as error:
        known = [name for name, p in signature.parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        own = known[len(takes) :]
        odd = next((name for name in args if name not in known), "")
        near = difflib.get_close_matches(odd, own, n=1) if odd else []
        cure = f"; did you mean {group}.args.{near[0]}?" if near else f"; it takes {', '.join(own) or 'no arguments'}"
        cure += f" after {', '.join(takes)}" if takes and not near else ""
        raise SettingError(f"{group}.path={path}: {error}{cure}") from None


@contextmanager
def running(path: str, setting: str) -> Iterator[None]:
    """Around the code that `path` names: the folder of its file can be imported from, and what it raises is one line, a
    SettingError that begins with `setting` and ends in the line of the file.
    """
    file = file_of(path)
    try:
        with _beside(file):
            yield
    except (SettingError, KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:
        raise SettingError(f"{setting} raised {raised(error, path)}") from error


def raised(error: BaseException, path: str) -> str:
    """An exception in one line: type, message, and the line of the file that `path` names where it passed there."""
    text = " ".join(str(error).split())
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == _origin(path)]
    if isinstance(error, SyntaxError) and error.filename == _origin(path):
        text, lines = error.msg, [error.lineno]
    at = f" ({Path(_origin(path)).name}, line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}{f': {text}' if text else ''}{at}"


def source(path: str) -> dict[str, str | None]:
    """Where the object of `path` comes from: the path, the file that holds it, and the first 16 hex digits of the SHA-256
    of what was loaded; None where no file holds it. Raises SettingError as `load` does.
    """
    code, file = load(path, "path"), file_of(path)
    if file is not None:
        return {"path": path, "file": str(file), "sha256": vars(sys.modules[_module_name(file)])["__sha256__"]}
    if inspect.isclass(code):  # packages tell another module than that of the file
        code = vars(code).get("__init__", code)
    try:
        found = inspect.getsourcefile(inspect.unwrap(code)) or ""
    except TypeError:  # written in C
        found = getattr(sys.modules[path.rpartition(":")[0]], "__file__", None) or ""
    return {"path": path, "file": found or None, "sha256": digest(Path(found)) if found else None}


def digest(file: Path) -> str:
    """The first 16 hex digits of the SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def file_of(path: str) -> Path | None:
    """The file that a path names; None for one of a package. Nothing is loaded."""
    where = path.rpartition(":")[0]
    if not where.endswith(".py") and "/" not in where:
        return None
    return Path(where).expanduser().absolute()


def _origin(path: str) -> str:
    """The file in which the code of a path runs, as Python names it; "" where that is not known."""
    file = file_of(path)
    if file is not None:
        return str(file)
    return getattr(sys.modules.get(path.rpartition(":")[0]), "__file__", None) or ""


def _module_name(file: Path) -> str:
    return f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"


def _of_file(file: Path, path: str, setting: str) -> ModuleType:
    """The module of a file: that of the last load, where the file is still the same."""
    if not file.is_file():
        what = "is no file" if file.exists() else "does not exist"
        raise SettingError(f"{setting}={path}: {file} {what}; {FORM}, a file relative to where you are")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise SettingError(f"{setting}={path}: {file} cannot be read ({error.strerror})") from None
    name, sha256 = _module_name(file), hashlib.sha256(content).hexdigest()[:16]
    loaded = sys.modules.get(name)
    if loaded is not None and vars(loaded).get("__sha256__") == sha256:
        return loaded
    from lab.streams import seeded  # torch: not where files are only compared

    module = ModuleType(name)
    module.__file__ = str(file)
    vars(module)["__sha256__"] = sha256
    sys.modules[name] = module  # dataclasses and pickle look there for what the code defines
    try:
        with running(path, f"{setting}={path}: the file"), seeded(0):
            exec(compile(content, str(file), "exec"), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _of_package(where: str, name: str, path: str, setting: str) -> ModuleType:
    if not all(part.isidentifier() for part in where.split(".")):
        raise SettingError(f"{setting}={path} names no module; {FORM}")
    with running(path, f"{setting}={path}: its import"):
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{where}.".startswith(f"{error.name}."):
                raise
            beside = Path(f"{where.replace('.', '/')}.py")
            cure = f"; did you mean {beside}:{name}?" if beside.is_file() else f"; {FORM}"
            raise SettingError(f"{setting}={path}: there is no module {error.name}{cure}") from None


@contextmanager
def _beside(file: Path | None) -> Iterator[None]:
    """Modules in the folder of `file` can be imported."""
    if file is None:
        yield
        return
    folder = str(file.parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _near(name: str, names: Mapping[str, Any]) -> str:
    known = [known for known, value in names.items() if callable(value) and not known.startswith("_")]
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; it has {', '.join(known[:8]) or 'no function or class'}"
