"""The things in the generated rooms."""

from pipeline.sources.drawing.canvas import Pen
from pipeline.sources.drawing.objects import cloth, pick
from pipeline.sources.drawing.palette import Surface


def bed(pen: Pen) -> None:
    rng = pen.rng
    wood = Surface(pick(rng, "brown", "dark brown", "tan", "white"), "wood")
    for x in (0.02, 0.92):
        pen.box(x, 0.7, x + 0.06, 1, wood, object="bed", part="leg")
    pen.box(0, 0.05, 0.1, 0.9, wood, object="bed", part="headboard")
    pen.box(0.1, 0.5, 1, 0.85, Surface("white", "fabric"), object="bed")
    pen.polygon([(0.36, 0.42), (1, 0.46), (1, 0.88), (0.36, 0.88)], cloth(rng, 0.75), object="bedclothes")
    pen.blob(0.1, 0.3, 0.34, 0.55, cloth(rng, 0.4, 0.6), object="pillow")


def lamp(pen: Pen) -> None:
    pen.box(
        0.44,
        0.4,
        0.56,
        1,
        Surface(pick(pen.rng, "brown", "silver", "black"), "metal"),
        object="lamp",
        part="base",
    )
    pen.oval(0.25, 0.9, 0.75, 1.02, Surface("brown", "metal"), object="lamp", part="base")
    shade = Surface(pick(pen.rng, "yellow", "white", "orange", "pink"), "fabric")
    pen.polygon([(0.25, 0), (0.75, 0), (1, 0.5), (0, 0.5)], shade, object="lamp", part="shade")


def curtains(pen: Pen) -> None:
    drape = cloth(pen.rng, 0.7)
    for left, right in ((-0.28, 0.16), (0.84, 1.28)):
        pen.polygon([(left, -0.1), (right, -0.1), (right - 0.03, 1.15), (left, 1.2)], drape, object="curtain")
    pen.box(-0.35, -0.16, 1.35, -0.09, Surface("dark brown", "wood"), object="curtain")


def painting(pen: Pen) -> None:
    pen.box(
        0,
        0,
        1,
        1,
        Surface(pick(pen.rng, "brown", "yellow", "black", "white"), "wood"),
        object="painting",
        part="frame",
    )
    pen.box(0.1, 0.1, 0.9, 0.9, Surface(pick(pen.rng, "sky blue", "amber", "teal")), object="painting")
    pen.polygon(
        [(0.1, 0.9), (0.4, 0.4), (0.6, 0.65), (0.75, 0.5), (0.9, 0.9)],
        Surface(pick(pen.rng, "green", "purple", "navy")),
    )


def drawers(pen: Pen) -> None:
    wood = pick(pen.rng, "brown", "dark brown", "tan", "white")
    pen.box(0, 0, 1, 1, Surface(wood, "wood"), object="cabinet")
    for top in (0.06, 0.38, 0.7):
        pen.box(0.07, top, 0.93, top + 0.25, Surface(wood, "wood"), part="drawer")
        pen.oval(
            0.44,
            top + 0.08,
            0.56,
            top + 0.18,
            Surface(pick(pen.rng, "yellow", "silver"), "metal"),
            detail="knob",
        )


def rug(pen: Pen) -> None:
    pattern = cloth(pen.rng, 1.0)
    pattern = Surface(pattern.shade, "carpet", pattern.texture, pattern.second)
    pen.polygon([(0.12, 0), (0.88, 0), (1, 1), (0, 1)], pattern, object="carpet")


def table(pen: Pen) -> None:
    wood = Surface(pick(pen.rng, "brown", "tan", "dark brown", "white"), "wood")
    for x in (0.08, 0.84):
        pen.box(x, 0.14, x + 0.08, 1, wood, object="table", part="leg")
    pen.box(0, 0, 1, 0.16, wood, object="table", part="top")


def chair(pen: Pen) -> None:
    wood = Surface(pick(pen.rng, "brown", "tan", "red", "white"), "wood")
    for x in (0.05, 0.8):
        pen.box(x, 0.55, x + 0.14, 1, wood, object="chair", part="leg")
    pen.box(0.05, 0, 0.22, 0.6, wood, object="chair", part="back")
    pen.box(0.05, 0.5, 1, 0.62, cloth(pen.rng, 0.3, 0.5), object="chair", part="seat")


def stove(pen: Pen) -> None:
    rng = pen.rng
    steel = Surface(pick(rng, "silver", "white", "charcoal", "red"), "metal")
    pen.box(0, 0.06, 1, 1, steel, object="stove")
    for x in (0.12, 0.56):
        pen.oval(x, 0, x + 0.32, 0.1, Surface("black", "metal"), object="stove", part="burner")
    for x in (0.1, 0.3, 0.5, 0.7):
        pen.oval(
            x,
            0.14,
            x + 0.14,
            0.26,
            Surface(pick(rng, "black", "white"), "metal"),
            object="stove",
            part="knob",
        )
    pen.box(0.1, 0.36, 0.9, 0.9, Surface("slate", "metal"), part="oven")
    pen.box(0.2, 0.5, 0.8, 0.8, Surface(pick(rng, "black", "orange"), "glass"), detail="pane")
    pen.box(0.2, 0.4, 0.8, 0.44, Surface("mist", "metal"), detail="handle")


def refrigerator(pen: Pen) -> None:
    rng = pen.rng
    steel = Surface(pick(rng, "silver", "white", "mist", "teal", "red"), "metal")
    pen.box(0, 0, 1, 1, steel, object="refrigerator")
    for top, bottom in ((0.02, 0.34), (0.37, 0.96)):
        pen.box(0.04, top, 0.96, bottom, steel, part="door")
        pen.box(0.12, top + 0.06, 0.19, bottom - 0.08, Surface("charcoal", "metal"), detail="handle")


def cupboard(pen: Pen, surface: Surface, doors: int) -> None:
    pen.box(0, 0, 1, 1, Surface("dark brown", "wood"), object="cabinet")
    for door in range(doors):
        left, right = (door + 0.05) / doors, (door + 0.95) / doors
        pen.box(left, 0.04, right, 0.96, surface, part="door")
        knob = left + 0.75 / doors
        pen.oval(knob, 0.44, knob + 0.1 / doors, 0.56, Surface("silver", "metal"), detail="knob")


def pot(pen: Pen) -> None:
    coat = Surface(pick(pen.rng, "red", "silver", "blue", "black"), pick(pen.rng, "metal", "ceramic"))
    pen.box(0.12, 0.2, 0.88, 1, coat, object="pot")
    pen.box(0.0, 0.35, 1.0, 0.5, Surface("black", "metal"), object="pot", part="handle")
