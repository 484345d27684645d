// key NAME: looks for the key NAME of type `user` in the keyrings of the session, the user and the user's session
// (keyrings(7)) and prints what it holds. key add NAME TEXT, key remove NAME: in the keyring of the user.
#include <errno.h>
#include <linux/keyctl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	const int rings[] = { KEY_SPEC_SESSION_KEYRING, KEY_SPEC_USER_KEYRING, KEY_SPEC_USER_SESSION_KEYRING };
	const char *names[] = { "session", "user", "user session" };
	char bytes[256];

	if (argc == 4 && !strcmp(argv[1], "add")) {
		long id = syscall(SYS_add_key, "user", argv[2], argv[3], strlen(argv[3]), KEY_SPEC_USER_KEYRING);
		printf("%ld\n", id);
		return id < 0;
	}
	if (argc == 3 && !strcmp(argv[1], "remove")) {
		long id = syscall(SYS_keyctl, KEYCTL_SEARCH, KEY_SPEC_USER_KEYRING, "user", argv[2], 0);
		return syscall(SYS_keyctl, KEYCTL_UNLINK, id, KEY_SPEC_USER_KEYRING) < 0;
	}
	if (argc != 2)
		return 2;
	// Whoever has the user's number may link the user's keyring to its session's, and so comes to possess what is in it.
	syscall(SYS_keyctl, KEYCTL_LINK, KEY_SPEC_USER_KEYRING, KEY_SPEC_SESSION_KEYRING);
	for (int i = 0; i < 3; i++) {
		long id = syscall(SYS_keyctl, KEYCTL_SEARCH, rings[i], "user", argv[1], 0);
		long n = id < 0 ? -1 : syscall(SYS_keyctl, KEYCTL_READ, id, bytes, sizeof bytes);
		if (n < 0)
			printf("%s: %s\n", names[i], strerror(errno));
		else
			printf("%s: %.*s\n", names[i], (int)n, bytes);
	}
	return 0;
}
