"""How fast the library is: opponents written from the paper's formulas, and what measures them beside it."""
