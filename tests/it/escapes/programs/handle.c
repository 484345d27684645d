// handle get PATH: prints the file handle of PATH as TYPE HEX.
// handle open MOUNT TYPE HEX: opens that file by its handle on the filesystem of MOUNT and prints what it holds.
// open_by_handle_at(2): needs CAP_DAC_READ_SEARCH, and then no path and no permission.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static union {
	struct file_handle handle;
	char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
} u;

static int get(const char *path)
{
	int mount;

	u.handle.handle_bytes = MAX_HANDLE_SZ;
	if (name_to_handle_at(AT_FDCWD, path, &u.handle, &mount, 0) < 0) {
		printf("name_to_handle_at: %s\n", strerror(errno));
		return 1;
	}
	printf("%d ", u.handle.handle_type);
	for (unsigned i = 0; i < u.handle.handle_bytes; i++)
		printf("%02x", u.handle.f_handle[i]);
	printf("\n");
	return 0;
}

static int open_it(const char *place, int type, const char *hex)
{
	char bytes[4096];
	ssize_t n;
	int mount = open(place, O_RDONLY), file;

	u.handle.handle_type = type;
	u.handle.handle_bytes = strlen(hex) / 2;
	if (u.handle.handle_bytes > MAX_HANDLE_SZ)
		return 2;
	for (unsigned i = 0; i < u.handle.handle_bytes; i++) {
		unsigned byte;
		if (sscanf(hex + 2 * i, "%2x", &byte) != 1)
			return 2;
		u.handle.f_handle[i] = byte;
	}
	file = open_by_handle_at(mount, &u.handle, O_RDONLY);
	if (file < 0) {
		printf("open_by_handle_at: %s\n", strerror(errno));
		return 1;
	}
	while ((n = read(file, bytes, sizeof bytes)) > 0)
		fwrite(bytes, 1, n, stdout);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "get"))
		return get(argv[2]);
	if (argc == 5 && !strcmp(argv[1], "open"))
		return open_it(argv[2], atoi(argv[3]), argv[4]);
	return 2;
}
