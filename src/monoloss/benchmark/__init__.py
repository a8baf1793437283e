"""Speed of the library: opponents written from the paper's formulas, and measurements of both."""
