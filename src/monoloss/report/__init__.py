"""Reports of evaluations: pages for a browser, PNG pictures, tables for the terminal."""
