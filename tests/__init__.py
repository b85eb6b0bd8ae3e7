"""A package, so that conftest is one module: pytest's, and that of tests which import from it."""
