/* Waits for io_uring in poll(2), for programs under valgrind: it lets other threads run while one is in poll, and does not while one is in
 * io_uring_enter (3.19), so that a program with two threads stands still. Preloaded by loadtest/instructions.sh; the program must call the
 * kernel by way of libc's syscall(), as monoio does. Refuses to be used for anything else: it is slow, and forgets the signal mask.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>

/* io_uring_enter(2). */
enum { GETEVENTS = 1, EXT_ARG = 8 };

/* struct io_uring_getevents_arg. */
struct wait {
    uint64_t sigmask;
    uint32_t sigmask_size, pad;
    uint64_t timespec;
};

/* libc's own syscall() is this function while it is preloaded. */
static long kernel(long number, long a, long b, long c, long d, long e, long f) {
    register long fourth __asm__("r10") = d;
    register long fifth __asm__("r8") = e;
    register long sixth __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth), "r"(fifth), "r"(sixth)
                     : "rcx", "r11", "memory");
    return result;
}

static long as_libc(long result) {
    if (result >= 0 || result < -4095) return result;
    errno = (int)-result;
    return -1;
}

static int milliseconds(long flags, long argument) {
    if (!(flags & EXT_ARG) || !argument) return -1;
    const struct timespec *most = (const struct timespec *)((const struct wait *)argument)->timespec;
    return most ? (int)(most->tv_sec * 1000 + most->tv_nsec / 1000000 + 1) : -1;
}

long syscall(long number, ...) {
    va_list list;
    va_start(list, number);
    long a = va_arg(list, long), b = va_arg(list, long), c = va_arg(list, long);
    long d = va_arg(list, long), e = va_arg(list, long), f = va_arg(list, long);
    va_end(list);
    if (number != SYS_io_uring_enter || c == 0) return as_libc(kernel(number, a, b, c, d, e, f));
    long submitted = kernel(number, a, b, 0, (d & ~(long)EXT_ARG) | GETEVENTS, 0, 8);
    if (submitted < 0) return as_libc(submitted);
    struct pollfd ring = {.fd = (int)a, .events = POLLIN};
    int ready = poll(&ring, 1, milliseconds(d, e));
    kernel(number, a, 0, 0, GETEVENTS, 0, 8);
    if (ready != 0) return submitted;
    errno = ETIME;
    return -1;
}
