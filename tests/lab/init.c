/* Copyright (c) 2026 the kvmsched authors
 * GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The whole userland of a lab guest: process 1 of an initramfs that holds nothing else but modules.
 *
 * Once a second it reports the guest's memory on the console (ttyS0); it obeys commands that come a
 * line each on ttyS1, and those of the kernel argument lab="command; command":
 *
 *   cpu PCT...           vCPU n is busy for PCT percent of each 100 ms (the last PCT counts for the rest)
 *   mem MIB [MIB_PER_S]  hold that much memory, at once or growing (shrinking) at that rate
 *   cache MIB            have that much of the blank disk in the page cache
 *   lie PAGES            say of the balloon that the guest has given back so many pages of 4 KiB (0xffffffff, say)
 *   at S COMMAND         the same, S seconds from now
 *   reboot, poweroff, panic
 *
 * Three sorts of children do the work: one burner per possible vCPU, one hog (the only one that the
 * guest's OOM killer may take) and short-lived readers.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { MAX_VCPUS = 64, MAX_LATER = 128, LINE = 256, PAGE = 4096 };
#define PERIOD_NS 100000000LL
#define HOG_MAX_KIB (64L << 20)

static struct load { /* shared with the children */
	volatile int share_pct[MAX_VCPUS];
	volatile long target_kib, rate_kib_s, held_kib;
} *load;

static struct later { double when_s; char command[LINE]; } later[MAX_LATER];
static int port = -1; /* where commands come from */
static int disk = -1; /* kept open: the page cache of a block device goes with its last user */
static pid_t hog_pid;

static long long now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_BOOTTIME, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static double now_s(void) { return now_ns() / 1e9; }

static void sleep_ns(long long ns)
{
	struct timespec t = { ns / 1000000000LL, ns % 1000000000LL };
	nanosleep(&t, NULL);
}

/* One write per line, so that lines of several processes do not mix. */
static void say(const char *format, ...)
{
	char line[2 * LINE];
	va_list arguments;
	int length = snprintf(line, sizeof line, "\nlab %.3f ", now_s());

	va_start(arguments, format);
	length += vsnprintf(line + length, sizeof line - length - 1, format, arguments);
	va_end(arguments);
	line[length++] = '\n';
	if (write(1, line, length) < 0)
		return;
}

/* What was done goes to who asked for it, too, where no kernel message can get in between. */
static void did(const char *what)
{
	char line[LINE + 32];
	int length = snprintf(line, sizeof line, "%.3f did %s\n", now_s(), what);

	say("did %s", what);
	if (write(port, line, length) < 0)
		return;
}

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0)
		return;
	if (write(fd, text, strlen(text)) < 0)
		say("error %s: %s", path, strerror(errno));
	close(fd);
}

static pid_t child(const char *oom_score_adj, int nice_level)
{
	pid_t pid = fork();

	if (pid == 0) {
		write_file("/proc/self/oom_score_adj", oom_score_adj);
		setpriority(PRIO_PROCESS, 0, nice_level);
	}
	return pid;
}

/* ---------------------------------------------------------------- what the children do */

static void sleep_until(long long when_ns)
{
	long long ns = when_ns - now_ns();

	if (ns > 0)
		sleep_ns(ns);
}

/* Sleeps in the kernel until a share is set: what has nothing to do wakes nobody, or an idle guest would not be idle. */
static void await_share(volatile int *share_pct)
{
	while (*share_pct == 0)
		syscall(SYS_futex, share_pct, FUTEX_WAIT, 0, NULL, NULL, 0);
}

/* Busy by the clock, not by time received: a vCPU that has to wait for its pCPU demands no more later.
 * Where in a period it is busy is drawn each time: what started together would be busy together for ever. */
static void burn(int vcpu)
{
	unsigned int seed = now_ns() + vcpu;
	cpu_set_t mask;

	CPU_ZERO(&mask);
	CPU_SET(vcpu, &mask);
	for (;;) {
		await_share(&load->share_pct[vcpu]);
		while (sched_setaffinity(0, sizeof mask, &mask)) /* not plugged in, or unplugged */
			sleep(1);

		long long begin_ns = now_ns() / PERIOD_NS * PERIOD_NS;
		long long busy_ns = load->share_pct[vcpu] * (PERIOD_NS / 100);
		long long from_ns = begin_ns + (PERIOD_NS - busy_ns) / 100 * (rand_r(&seed) % 101);

		sleep_until(from_ns);
		while (now_ns() < from_ns + busy_ns)
			for (volatile int i = 0; i < 20000; i++)
				;
		sleep_until(begin_ns + PERIOD_NS);
	}
}

static void hog(void)
{
	char *area = mmap(NULL, HOG_MAX_KIB << 10, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	madvise(area, HOG_MAX_KIB << 10, MADV_NOHUGEPAGE);
	for (;;) {
		long held = load->held_kib, missing = load->target_kib - held;
		long step = load->rate_kib_s ? load->rate_kib_s / 10 : missing > 0 ? 1024 : -missing;

		if (missing > 0) {
			step = step < missing ? step : missing;
			for (long at = held; at < held + step; at += PAGE >> 10)
				*(long *)(area + (at << 10)) = at + 1;
			load->held_kib = held + step;
		} else if (missing < 0) {
			step = step < -missing ? step : -missing;
			madvise(area + ((held - step) << 10), step << 10, MADV_DONTNEED);
			load->held_kib = held - step;
		}
		if (!missing || load->rate_kib_s)
			sleep_ns(PERIOD_NS);
	}
}

static void read_disk(long kib)
{
	static char buffer[1 << 20];

	for (long at = 0; at < kib; at += sizeof buffer >> 10)
		if (pread(disk, buffer, sizeof buffer, at << 10) <= 0)
			break;
}

/* ---------------------------------------------------------------- commands */

static void set_cpu(char *arguments)
{
	int pct = 0;
	char *word = strtok(arguments, " ");

	for (int vcpu = 0; vcpu < MAX_VCPUS; vcpu++) {
		if (word) {
			pct = atoi(word);
			word = strtok(NULL, " ");
		}
		load->share_pct[vcpu] = pct;
		syscall(SYS_futex, &load->share_pct[vcpu], FUTEX_WAKE, 1, NULL, NULL, 0);
	}
}

static void set_memory(const char *arguments)
{
	double target_mib = 0, rate_mib_s = 0;

	sscanf(arguments, "%lf %lf", &target_mib, &rate_mib_s);
	load->rate_kib_s = rate_mib_s * 1024;
	load->target_kib = (long)(target_mib * 1024) & -4L;
	if (hog_pid == 0 && load->target_kib) {
		load->held_kib = 0;
		hog_pid = child("1000", 0);
		if (hog_pid == 0) {
			hog();
			_exit(0);
		}
	}
}

static void set_cache(const char *line)
{
	long kib = atol(line + strlen("cache ")) << 10;

	posix_fadvise(disk, kib << 10, 0, POSIX_FADV_DONTNEED);
	if (child("-1000", 0) == 0) {
		read_disk(kib);
		did(line);
		_exit(0);
	}
}

/* The register that a balloon's driver tells its size in, which whoever is root here may write as well (virtio 1.2,
 * 5.5.4: actual). A device of machine type pc has it behind I/O ports, too (4.1.4.10, legacy interface): 20 bytes of
 * the transport's own, for the balloon has no MSI-X, then the target, then this. */
static void lie(const char *arguments)
{
	enum { BALLOON = 0x1002, ACTUAL = 24 };
	char path[64], text[64];

	for (int slot = 0; slot < 32; slot++) {
		unsigned long id = 0, ports = 0;
		FILE *file;

		snprintf(path, sizeof path, "/sys/bus/pci/devices/0000:00:%02x.0/device", slot);
		if ((file = fopen(path, "r"))) {
			id = fgets(text, sizeof text, file) ? strtoul(text, NULL, 0) : 0;
			fclose(file);
		}
		if (id != BALLOON)
			continue;
		snprintf(path, sizeof path, "/sys/bus/pci/devices/0000:00:%02x.0/resource", slot);
		if ((file = fopen(path, "r"))) {
			ports = fgets(text, sizeof text, file) ? strtoul(text, NULL, 0) : 0;
			fclose(file);
		}
		if (!ports || iopl(3))
			say("error lie: no ports, or not allowed: %s", strerror(errno));
		else
			outl(strtoul(arguments, NULL, 0), ports + ACTUAL);
	}
}

static void command(const char *line);

static void set_later(const char *arguments)
{
	int skip = 0;
	double after_s = 0;

	if (sscanf(arguments, "%lf %n", &after_s, &skip) < 1)
		return;
	for (struct later *slot = later; slot < later + MAX_LATER; slot++)
		if (slot->when_s == 0) {
			slot->when_s = now_s() + after_s;
			snprintf(slot->command, LINE, "%s", arguments + skip);
			return;
		}
}

static int starts(const char *line, const char *word) { return strncmp(line, word, strlen(word)) == 0; }

static void command(const char *line)
{
	char copy[LINE];

	while (*line == ' ')
		line++;
	snprintf(copy, sizeof copy, "%s", line);
	if (starts(line, "cpu "))
		set_cpu(copy + 4);
	else if (starts(line, "mem "))
		set_memory(line + 4);
	else if (starts(line, "cache "))
		set_cache(line);
	else if (starts(line, "lie "))
		lie(line + 4);
	else if (starts(line, "at "))
		set_later(line + 3);
	else if (starts(line, "reboot"))
		reboot(RB_AUTOBOOT);
	else if (starts(line, "poweroff"))
		reboot(RB_POWER_OFF);
	else if (starts(line, "panic"))
		write_file("/proc/sysrq-trigger", "c");
	else if (*line) {
		say("error unknown command: %s", line);
		return;
	}
	if (*line && !starts(line, "cache ")) /* the reader says when it is done */
		did(line);
}

/* How long process 1 may sleep: to its next report at *report_s*, or to what is due before. */
static int wait_ms(double report_s)
{
	double next_s = report_s;

	for (struct later *slot = later; slot < later + MAX_LATER; slot++)
		if (slot->when_s && slot->when_s < next_s)
			next_s = slot->when_s;
	return next_s > now_s() ? (next_s - now_s()) * 1000 + 1 : 0;
}

static void run_due(void)
{
	for (struct later *slot = later; slot < later + MAX_LATER; slot++)
		if (slot->when_s && slot->when_s <= now_s()) {
			slot->when_s = 0;
			command(slot->command);
		}
}

static void obey(void)
{
	static char line[LINE];
	static int length;
	char c;

	while (read(port, &c, 1) == 1) {
		if (c == '\n') {
			line[length] = 0;
			length = 0;
			command(line);
		} else if (length < LINE - 1)
			line[length++] = c;
	}
}

/* ---------------------------------------------------------------- reports */

static long meminfo_kib(const char *text, const char *key)
{
	char wanted[40];
	const char *found;

	snprintf(wanted, sizeof wanted, "\n%s:", key);
	found = strstr(text, wanted);
	return found ? atol(found + strlen(wanted)) : 0;
}

static void report(void)
{
	static char text[8192] = "\n";
	int fd = open("/proc/meminfo", O_RDONLY);
	ssize_t length = read(fd, text + 1, sizeof text - 2);

	close(fd);
	text[length > 0 ? length + 1 : 1] = 0;
	say("report total=%ld free=%ld available=%ld cached=%ld swap_used=%ld held=%ld target=%ld",
	    meminfo_kib(text, "MemTotal"), meminfo_kib(text, "MemFree"), meminfo_kib(text, "MemAvailable"),
	    meminfo_kib(text, "Cached") + meminfo_kib(text, "Buffers"),
	    meminfo_kib(text, "SwapTotal") - meminfo_kib(text, "SwapFree"),
	    load->held_kib, load->target_kib);
}

/* What a child's end interrupts is poll(): nobody waits for a report to be told of a kill. */
static void child_ended(int signal) { (void)signal; }

static void reap(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		if (pid == hog_pid) {
			say("killed hog signal=%d held=%ld", WTERMSIG(status), load->held_kib);
			hog_pid = load->held_kib = load->target_kib = 0;
		}
}

static void plug_in_new_vcpus(void)
{
	char path[64], state = '1';

	for (int vcpu = 1; vcpu < MAX_VCPUS; vcpu++) {
		snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/online", vcpu);
		int fd = open(path, O_RDONLY);
		if (fd < 0)
			continue;
		if (read(fd, &state, 1) == 1 && state == '0')
			write_file(path, "1");
		close(fd);
	}
}

/* ---------------------------------------------------------------- start */

static void load_modules(void)
{
	char path[64];

	for (int n = 0; n < 100; n++) { /* in the order in which they need each other */
		snprintf(path, sizeof path, "/modules/%02d.ko", n);
		int fd = open(path, O_RDONLY);
		if (fd < 0)
			return;
		if (syscall(SYS_finit_module, fd, "", 0))
			say("error module %s: %s", path, strerror(errno));
		close(fd);
	}
}

/* A swap area is a header: one version, the number of pages, and a signature at the end of page 0. */
static void use_swap(const char *path)
{
	static struct { char boot[1024]; unsigned version, last_page, bad_pages; char rest[PAGE - 1046], magic[10]; }
		__attribute__((packed)) header;
	int fd = open(path, O_RDWR);

	if (fd < 0)
		return;
	header.version = 1;
	header.last_page = lseek(fd, 0, SEEK_END) / PAGE - 1;
	memcpy(header.magic, "SWAPSPACE2", 10);
	if (pwrite(fd, &header, PAGE, 0) != PAGE || fsync(fd) || swapon(path, 0))
		say("error swap %s: %s", path, strerror(errno));
	close(fd);
}

static int open_port(const char *path)
{
	struct termios raw;
	int fd = open(path, O_RDWR | O_NONBLOCK | O_NOCTTY);

	if (fd >= 0 && tcgetattr(fd, &raw) == 0) {
		cfmakeraw(&raw);
		raw.c_cflag |= CLOCAL;
		tcsetattr(fd, TCSANOW, &raw);
	}
	return fd;
}

static void start(void)
{
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	for (int fd = 0; fd < 3; fd++)
		dup2(open("/dev/console", O_RDWR), fd);
	load_modules();
	port = open_port("/dev/ttyS1");
	disk = open("/dev/vda", O_RDONLY);
	use_swap("/dev/vdb");
	load = mmap(NULL, sizeof *load, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (int vcpu = 0; vcpu < sysconf(_SC_NPROCESSORS_CONF) && vcpu < MAX_VCPUS; vcpu++)
		if (child("-1000", 19) == 0)
			burn(vcpu);
	for (char *rest = getenv("lab"); rest;)
		command(strsep(&rest, ";"));
}

int main(void)
{
	double next_report_s = 0;

	start();
	signal(SIGCHLD, child_ended);
	say("ready");
	for (;;) {
		run_due();
		if (now_s() >= next_report_s) {
			double began_s = now_s(), took_s;

			plug_in_new_vcpus();
			report();
			tcdrain(STDOUT_FILENO);
			/* A byte may cost milliseconds, in a guest of an emulated machine: it does more than to report. */
			took_s = now_s() - began_s;
			next_report_s = now_s() + (took_s > 0.5 ? 4 * took_s : 1);
		}
		poll(&(struct pollfd){ port, POLLIN, 0 }, 1, wait_ms(next_report_s));
		reap();
		obey();
	}
}
