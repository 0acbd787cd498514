#include <stdio.h>

#include "greeting.h"

void greet(const char *name) {
    printf("Hello, %s! This program was compiled in a container.\n", name);
}
