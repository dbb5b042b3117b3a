"""Tools that need no daemon: `bascule payload …` and `bascule disk …`."""
