// swap COUNT A B…: exchanges A and B (and C and D, …) COUNT times, without end when COUNT is 0: renameat2(2).
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	long count = argc > 1 ? atol(argv[1]) : 0, done = 0;

	if (argc < 4 || argc % 2)
		return 2;
	while (!count || done < count) {
		for (int i = 2; i < argc; i += 2)
			if (renameat2(AT_FDCWD, argv[i], AT_FDCWD, argv[i + 1], RENAME_EXCHANGE) < 0)
				return perror(argv[i]), 1;
		done++;
		if (done == 1)
			printf("swapping\n"), fflush(stdout);
	}
	printf("%ld\n", done);
	return 0;
}
