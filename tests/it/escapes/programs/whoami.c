// whoami: the effective user id, which a setuid file would have changed.
#include <stdio.h>
#include <unistd.h>

int main(void)
{
	printf("%d\n", geteuid());
	return 0;
}
