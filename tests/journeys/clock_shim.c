/*
 * A clock that is ahead by the seconds in the environment's CLOCK_AHEAD. Loaded by LD_PRELOAD.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now)
{
	const char *ahead = getenv("CLOCK_AHEAD");
	int result = syscall(SYS_clock_gettime, clock, now);
	if (result == 0 && clock == CLOCK_REALTIME && ahead)
		now->tv_sec += atol(ahead);
	return result;
}
