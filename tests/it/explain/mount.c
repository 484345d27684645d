/* mount(8) of util-linux 2.39 for that of 2.38 (Debian 12), as far as it lacks something: the option X-mount.idmap of bind
 * mounts. Everything else is left to the system's mount. To be removed when that has the option. */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <stdint.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	/* mount --[r]bind -o OPTIONS SOURCE TARGET */
	if (argc != 6 || !strstr(argv[3], "X-mount.idmap=")) {
		execv("/bin/mount", argv);
		err(1, "/bin/mount");
	}
	unsigned deep = !strcmp(argv[1], "--rbind") ? AT_RECURSIVE : 0;
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_IDMAP, .propagation = MS_PRIVATE };
	for (char *option = strtok(argv[3], ","); option; option = strtok(NULL, ",")) {
		if (!strncmp(option, "X-mount.idmap=", 14)) {
			int users = open(option + 14, O_RDONLY);
			if (users < 0)
				err(1, "%s", option);
			attr.userns_fd = users;
		} else if (!strcmp(option, "ro"))
			attr.attr_set |= MOUNT_ATTR_RDONLY;
		else if (!strcmp(option, "nosuid"))
			attr.attr_set |= MOUNT_ATTR_NOSUID;
		else if (!strcmp(option, "nodev"))
			attr.attr_set |= MOUNT_ATTR_NODEV;
		else if (!strcmp(option, "noexec"))
			attr.attr_set |= MOUNT_ATTR_NOEXEC;
		else if (!strcmp(option, "suid"))
			attr.attr_clr |= MOUNT_ATTR_NOSUID;
		else if (!strcmp(option, "dev"))
			attr.attr_clr |= MOUNT_ATTR_NODEV;
		else
			errx(1, "option %s", option);
	}
	int tree = syscall(SYS_open_tree, AT_FDCWD, argv[4], OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | deep);
	if (tree < 0)
		err(1, "open_tree %s", argv[4]);
	if (syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | deep, &attr, sizeof attr))
		err(1, "mount_setattr %s", argv[4]);
	if (syscall(SYS_move_mount, tree, "", AT_FDCWD, argv[5], MOVE_MOUNT_F_EMPTY_PATH))
		err(1, "move_mount %s", argv[5]);
	return 0;
}
