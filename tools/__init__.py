"""Programs for who works on the repository. A package, so that no installed package of this name is taken for it."""
