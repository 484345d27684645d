// connect NAME: connects to the abstract unix socket NAME (unix(7)) and prints what it is told.
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	char bytes[256];
	int s = socket(AF_UNIX, SOCK_STREAM, 0);
	ssize_t n;

	if (argc != 2 || strlen(argv[1]) >= sizeof address.sun_path)
		return 2;
	memcpy(address.sun_path + 1, argv[1], strlen(argv[1]));
	if (connect(s, (void *)&address, offsetof(struct sockaddr_un, sun_path) + 1 + strlen(argv[1])) < 0) {
		printf("connect: %s\n", strerror(errno));
		return 1;
	}
	while ((n = read(s, bytes, sizeof bytes)) > 0)
		fwrite(bytes, 1, n, stdout);
	return 0;
}
