/* What the two parts of the example share. */
void greet(const char *name);
