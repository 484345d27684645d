// ping: an echo of the loopback through a ping socket (icmp(7)), then what needs CAP_NET_RAW: sockets that see packets of
// others. One `NAME: RESULT` a line.
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/if_ether.h>
#include <netinet/ip_icmp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void report(const char *name, int result)
{
	printf("%s: %s\n", name, result < 0 ? strerror(errno) : "done");
}

int main(void)
{
	struct sockaddr_in there = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct icmphdr echo = { .type = ICMP_ECHO }, answer = { .type = ICMP_ECHO };
	int s = socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP);

	if (s < 0 || sendto(s, &echo, sizeof echo, 0, (void *)&there, sizeof there) < 0)
		report("ping", -1);
	else
		report("ping", recv(s, &answer, sizeof answer, 0) > 0 && answer.type == ICMP_ECHOREPLY ? 0 : -1);
	report("raw", socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
	report("packet", socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL)));
	return 0;
}
