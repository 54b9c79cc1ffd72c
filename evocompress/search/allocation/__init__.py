"""Published rules and dynamic programs that divide a budget among units."""
