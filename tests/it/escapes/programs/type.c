// type TEXT: types TEXT into every terminal that it can name, as if the person had (ioctl_tty(2), TIOCSTI).
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int type(const char *name, int fd, const char *text)
{
	for (const char *c = text; *c; c++) {
		if (ioctl(fd, TIOCSTI, c) < 0) {
			fprintf(stderr, "%s: %s\n", name, strerror(errno));
			return 0;
		}
	}
	fprintf(stderr, "%s: typed\n", name);
	return 1;
}

int main(int argc, char **argv)
{
	int typed = 0;

	if (argc != 2)
		return 2;
	typed += type("tty", open("/dev/tty", O_RDWR), argv[1]);
	typed += type("console", open("/dev/console", O_RDWR | O_NOCTTY), argv[1]);
	for (int fd = 0; fd < 3; fd++)
		typed += type((const char *[]){ "stdin", "stdout", "stderr" }[fd], fd, argv[1]);
	// TIOCSCTTY with 1 steals it from another session: CAP_SYS_ADMIN only.
	setsid();
	if (ioctl(0, TIOCSCTTY, 1) == 0)
		typed += type("stolen", 0, argv[1]);
	return typed ? 0 : 1;
}
