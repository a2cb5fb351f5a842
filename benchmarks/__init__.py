# A regular package, not a namespace: Opacus installs a top-level package of this name too, which
# would win over a folder without this file.
