"""The import law: floors, who may import whom, and which packages the lowest rooms may know."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A new room is a line here: its floor. Imports go down only; rooms of one floor do not import each other.
FLOORS = {
    "api": 10,
    "demo": 10,
    "experiments": 10,
    "coh_train": 9,
    "card": 8,
    "held_out": 8,
    "preview": 6,
    "generate": 6,
    "data.coh_data": 5,
    "chatting": 5,
    "evaluate_args": 5,
    "generate_args": 5,
    "data.chains": 4,
    "evaluate": 7,
    "report": 7,
    "judging": 5,
    "harness": 5,
    "written": 6,
    "measuring": 4,
    "steered": 4,
    "data.choices": 3,
    "experiment": 3,
    "score": 3,
    "data.table": 2,
    "data.data_args": 2,
    "data.pretrain": 2,
    "chat_template": 2,
    "rows": 2,
    "likelihood": 2,
    "steering": 2,
    "trainer": 3,
    "resuming": 2,
    "provenance": 2,
    "starting": 2,
    "checkpoints": 1,
    "hub": 1,
    "identity": 1,
    "beginnings": 0,
    "guards": 0,
    "adapters": 1,
    "merge": 9,
    "data.hindsight": 1,
    "data.forms": 1,
    "data.sources": 1,
    "data.encoding": 1,
    "data.pieces": 1,
    "data.plan": 1,
    "data.collator": 1,
    "generation": 1,
    "options": 1,
    "saved": 1,
    "pages": 1,
    "train_args": 1,
    "data.records": 0,
    "data.templates": 0,
    "data.draws": 0,
    "data.summary": 0,
    "data.mapped": 0,
    "data.words": 0,
    "loss": 0,
    "masking": 0,
    "measures": 0,
    "processes": 0,
    "modeling": 0,
    "world": 0,
    "arguments": 0,
}
# Words, records and draws are plain Python. Templates are read from YAML.
STANDARD_LIBRARY_ONLY = {"data.records": set(), "data.templates": {"yaml"}, "data.draws": set()}
# One floor, but one on top of the other: records are the words that templates are checked with.
NEIGHBOURS = {("data.templates", "data.records")}


def room_of(path: Path) -> str:
    """`coh/data/sources/specs.py` is in the room data.sources; packages' own files have no room."""
    parts = path.relative_to(ROOT / "coh").with_suffix("").parts
    if parts[:2] == ("data", "sources"):
        return "data.sources"
    if parts[0] in ("preview", "report", "experiments"):
        return parts[0]
    return ".".join(part for part in parts if part != "__init__")


def imports_of(path: Path) -> set[str]:
    """All modules that a file imports, deferred imports included; relative ones made absolute."""
    package = ("coh", *path.relative_to(ROOT / "coh").parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def rooms_imported(path: Path) -> set[str]:
    names = {name.removeprefix("coh.") for name in imports_of(path) if name.startswith("coh.")}
    return {room for room in FLOORS for name in names if name == room or name.startswith(room + ".")}


SOURCES = sorted(path for path in (ROOT / "coh").rglob("*.py") if room_of(path) not in ("", "data"))


def test_every_room_has_a_floor():
    assert {room_of(path) for path in SOURCES} == set(FLOORS)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    room = room_of(path)
    wrong = {
        other
        for other in rooms_imported(path) - {room}
        if FLOORS[other] >= FLOORS[room] and (room, other) not in NEIGHBOURS
    }
    assert not wrong, f"{room} (floor {FLOORS[room]}) imports {wrong}"


def test_trainer_and_data_meet_in_the_entry_point_only():
    for path in SOURCES:
        room, rooms = room_of(path), rooms_imported(path)
        if room == "trainer":
            assert not any(other.startswith("data.") for other in rooms), rooms
        if room.startswith("data."):
            assert "trainer" not in rooms
            assert not any(name.startswith("transformers.trainer") for name in imports_of(path))


@pytest.mark.parametrize("room", STANDARD_LIBRARY_ONLY)
def test_lowest_rooms_know_little(room):
    path = ROOT / "coh" / f"{room.replace('.', '/')}.py"
    outside = {name.split(".")[0] for name in imports_of(path)} - {"coh", "__future__"}
    assert outside - set(sys.stdlib_module_names) <= STANDARD_LIBRARY_ONLY[room]


def test_the_law_is_not_vacuous():
    assert "data.records" in rooms_imported(ROOT / "coh" / "data" / "chains.py")
    assert "data.sources" in rooms_imported(ROOT / "coh" / "data" / "coh_data.py")
    assert "data.records" in rooms_imported(ROOT / "coh" / "data" / "sources" / "specs.py")
