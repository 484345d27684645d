// library.so: a shared library that, once loaded, writes a file: $EVIL, or /owned.
#include <stdio.h>
#include <stdlib.h>

__attribute__((constructor)) static void run(void)
{
	const char *at = getenv("EVIL");
	FILE *file = fopen(at ? at : "/owned", "w");

	if (file)
		fclose(file);
}
