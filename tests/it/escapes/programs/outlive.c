// outlive PROGRAM ARGUMENT…: goes on when the process that started it is killed, and then runs the program: prctl(2),
// PR_SET_PDEATHSIG is the process's own to take back.
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	if (argc < 2)
		return 2;
	prctl(PR_SET_PDEATHSIG, 0);
	signal(SIGPIPE, SIG_IGN);
	printf("outlives\n");
	fflush(stdout);
	execv(argv[1], argv + 1);
	return 1;
}
