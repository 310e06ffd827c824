"""Imports only point down, and the heavy frameworks stay in their rooms: the architecture, read off the source."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOORS = ("train", "measure", "simulate", "report", "selfcheck")
FLOORS = {
    0: ("settings", "named", "streams", "params", "results", "progress", "sampling", "objective"),
    1: ("layers", "curvature", "noise", "landscapes", "flows", "points", "escape"),
    2: ("models", "data", "optim"),
    3: ("run", "compare", "probes"),
    4: ("module", "callbacks"),
    5: ("doors",),
    6: DOORS,
}
BESIDE = "gallery"
"""Stands on no floor: it uses floors 0 to 3 as a reader would, and only the door `simulate` opens it."""
GALLERY_FLOOR, GALLERY_DOOR = 3, "simulate"
ROOMS = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
ALLOWED = {
    "pytorch_lightning": {"module", "callbacks", "data", "train"},
    "hydra": {"doors"},
    "omegaconf": {"doors"},
}
SOURCES = sorted((ROOT / "lab").rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(ROOT / "lab").with_suffix("").parts[0]


def imports(file: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def test_every_room_stands_on_a_floor() -> None:
    rooms = {room_of(file) for file in SOURCES} - {"__init__", BESIDE}
    assert rooms <= ROOMS.keys(), f"no floor for {rooms - ROOMS.keys()}"


def test_imports_only_point_down() -> None:
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in SOURCES
        if room_of(file) not in {"__init__", BESIDE}
        for name in imports(file)
        if name.startswith("lab.") and name.split(".")[1] != BESIDE
        if ROOMS[name.split(".")[1]] > ROOMS[room_of(file)]
    ]
    assert not wrong, "\n".join(wrong)


def test_points_know_nothing_of_escape() -> None:
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in SOURCES
        if room_of(file) == "points"
        for name in imports(file)
        if name.startswith("lab.escape")
    ]
    assert not wrong, "\n".join(wrong)


def test_no_door_imports_another() -> None:
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in SOURCES
        if room_of(file) in DOORS
        for name in imports(file)
        if name.startswith("lab.") and name.split(".")[1] in {*DOORS} - {room_of(file)}
    ]
    assert not wrong, "\n".join(wrong)


def test_the_gallery_stands_beside_the_floors() -> None:
    """It imports mathematics, models, data and figures; nothing in the lab but its door imports it."""
    used = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in SOURCES
        if room_of(file) not in {BESIDE, GALLERY_DOOR}
        for name in imports(file)
        if name.startswith(f"lab.{BESIDE}")
    ]
    high = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in SOURCES
        if room_of(file) == BESIDE
        for name in imports(file)
        if name.startswith("lab.") and name.split(".")[1] != BESIDE
        if ROOMS[name.split(".")[1]] > GALLERY_FLOOR
    ]
    assert not used + high, "\n".join(used + high)


def test_hydra_is_used_by_its_public_names_only() -> None:
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in SOURCES
        for name in imports(file)
        if name.startswith("hydra.") and any(part.startswith("_") for part in name.split("."))
    ]
    assert not wrong, "\n".join(wrong)


def test_rooms_of_a_floor_form_no_circle() -> None:
    below: dict[str, set[str]] = {}
    for file in SOURCES:
        used = {name.split(".")[1] for name in imports(file) if name.startswith("lab.")}
        below.setdefault(room_of(file), set()).update(used - {room_of(file)})
    below.pop("__init__")
    TopologicalSorter(below).prepare()  # raises CycleError, which names the circle


def test_frameworks_stay_in_their_rooms() -> None:
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in SOURCES
        for name in imports(file)
        if name.split(".")[0] in ALLOWED and room_of(file) not in ALLOWED[name.split(".")[0]]
    ]
    assert not wrong, "\n".join(wrong)


def test_mathematics_touches_no_files() -> None:
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in SOURCES
        if ROOMS.get(room_of(file), 9) <= 1 and room_of(file) != "named"  # it reads the file that it is told
        for name in imports(file)
        if name.split(".")[0] in {"pathlib", "shutil", "tempfile", "json"}
    ]
    assert not wrong, "\n".join(wrong)


def test_a_class_has_a_name_of_its_own_and_no_file_or_class_outgrows_its_reader() -> None:
    homes: dict[str, list[str]] = {}
    for file in SOURCES:
        source = file.read_text()
        assert source.count("\n") <= 300, f"{file}: cut it along what it does"
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(str(file.relative_to(ROOT)))
                assert (node.end_lineno or 0) - node.lineno < 150, f"{file}: {node.name}"
    assert not (twice := {name: files for name, files in homes.items() if len(files) > 1}), twice
