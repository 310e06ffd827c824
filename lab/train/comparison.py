"""The figure over all cells of a grid, and its paragraph, where the settings ask for them."""

from lab.doors.grid import Grid
from lab.doors.pages import cell_name
from lab.run.cards import card


def compare(grid: Grid) -> None:
    """Draw, write and say it once all cells are finished. Raises SettingError for what none of the runs has measured."""
    head = grid.head
    if head.values.get("compare") is None:
        return
    from lab.compare import carry_out

    if waiting := grid.left():
        print(f"{waiting} of {len(grid.cells)} cells are not finished; repeat the command to compare them.")
        return
    words = sorted((word.lstrip("+") for word in head.overrides), key=lambda word: word.partition("=")[0])
    drawn = [word for word in words if word.startswith("compare")]  # no part of the names of the runs
    place = grid.folder / "figures" / cell_name(",".join(filter(None, (head.names, *drawn))))
    cells = {cell.folder: cell.overrides for cell in grid.cells}
    title = head.title(head.values.get("name") or head.cards.get("experiment") or "sweep")
    comparison = carry_out(card(head.values["compare"], "compare"), cells, place, title)
    print(f"\n{comparison.sentence}\n")
    print(f"  figure    {place}.png")
    print(f"  numbers   {place}.json\n", flush=True)
