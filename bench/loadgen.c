/*
 * Load generator: agents that register, hold their connections and answer frames.
 *
 *   loadgen [--serve] [--no-cancellation] [--per-id C] [--stall-seconds S] uds PATH
 *   loadgen [--serve] [--no-cancellation] [--per-id C] [--stall-seconds S] tcp PORT      (127.0.0.1)
 *
 * Commands, one a line on stdin; each is answered by one JSON object on a line of stdout:
 *
 *   register M K   M registrations, K of them in handshake at any moment; accepted ones are held
 *   close          closes every held connection, waits for nothing
 *   stats          what the held connections have answered so far, CPU since the last stats
 *   quit           (or end of input) ends
 *
 * One thread, one epoll set, one read per wake-up, and all answers to what it brought in one write, so
 * that it costs far less than whatever it measures. A connection is registered as agent "bench-<n / C>",
 * n counting from 0 since the last close; with --no-cancellation as one that cannot be told to forget a
 * request. Held connections answer pings (0xF0 -> 0xF1) always, and with --serve each RequestHeaders
 * (0x10) with a Decision (0x20, "allow"). A request for "/echo..." gets its URI back, as the value of a
 * header x-uri, so that one can see whose answer it is. Cancels (0x30) are counted and not answered.
 * Times are CLOCK_MONOTONIC; every latency is kept and percentiles are exact.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { REGISTRATION = 0x03, REGISTRATION_ACK = 0x04, REQUEST_HEADERS = 0x10, DECISION = 0x20, CANCEL = 0x30,
       PING = 0xF0, PONG = 0xF1 };
enum { HEADER = 5, EVENTS = 256, SCRATCH = 256 * 1024, FAILURE_TEXT = 300, RETRY_MS = 1, SPARE_FDS = 16,
       STALL_CHECK_MS = 100, ANSWER_TEXT = 192 };

/* What the Go SDK's example agent sends, but for the id (277 bytes with the id "waf-agent-v2"). */
static const char BEFORE_ID[] = "{\"protocol_version\":2,\"agent_id\":\"";
static const char AFTER_ID[] =
    "\",\"capabilities\":{\"handles_request_headers\":true,\"handles_request_body\":true,"
    "\"handles_response_headers\":false,\"handles_response_body\":false,\"supports_streaming\":true,"
    "\"supports_cancellation\":%s,\"max_concurrent_requests\":500}}";
static const char ACCEPTED[] = "\"accepted\":true";
#define ECHO_HEADER \
    ",\"request_headers\":[{\"operation\":\"set\",\"name\":\"x-uri\",\"value\":\"%.*s\"}]"
static const char REQUEST_ID[] = "\"request_id\":", ECHO_URI[] = "\"uri\":\"/echo";

enum state { FREE, CONNECTING, AWAITING, HELD };

/* Bytes that wait: the beginning of a frame to read, or the end of one to write. Usually none. */
struct pending { char *bytes; uint32_t length; };

struct connection {
    enum state state;
    uint32_t number;        /* since the last close; number / per_id names the agent */
    uint32_t sent;          /* bytes of the registration that are written */
    uint64_t started_ns;    /* before the first connect() */
    struct pending in, out;
};

static struct {
    bool active;
    uint32_t asked, limit, started, ended, in_handshake;
    uint32_t accepted, refused, failed, connect_retries;
    uint64_t started_ns, progress_ns;
    uint64_t *latencies_ns; /* of the accepted ones */
    char failure[FAILURE_TEXT];
    struct rusage usage;
} phase;

static struct { uint64_t requests, cancels, pings, ignored, lost; struct rusage usage; } served;

static struct connection *connections; /* by descriptor */
static int *retries;                   /* descriptors whose connect() said EAGAIN, oldest first */
static uint32_t retry_count, held, next_number, per_id = 4, max_fds;
static uint64_t stall_ns = 30ull * 1000000000;
static bool serve, cancellation = true;
static int epoll_fd, family;
static struct sockaddr_storage address;
static socklen_t address_length;
static char scratch[SCRATCH], answers[SCRATCH];

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void die(const char *what) {
    fprintf(stderr, "loadgen: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void *must(void *memory) {
    if (memory == NULL) die("memory");
    return memory;
}

/* ---- output ---------------------------------------------------------------------------------- */

static void print_string(const char *text) {
    putchar('"');
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        if (*c == '"' || *c == '\\') printf("\\%c", *c);
        else if (*c < 0x20 || *c > 0x7e) printf("\\u%04x", *c);
        else putchar(*c);
    }
    putchar('"');
}

static void print_error(const char *text) {
    printf("{\"phase\":\"error\",\"error\":");
    print_string(text);
    puts("}");
}

static double seconds(struct timeval t) { return (double)t.tv_sec + (double)t.tv_usec / 1e6; }

static void print_cpu_since(const struct rusage *then) {
    struct rusage now;
    getrusage(RUSAGE_SELF, &now);
    printf("\"cpu_user_s\":%.6f,\"cpu_system_s\":%.6f", seconds(now.ru_utime) - seconds(then->ru_utime),
           seconds(now.ru_stime) - seconds(then->ru_stime));
}

static int ascending(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Nearest rank: the smallest latency that at least `percent` of all do not exceed. */
static double percentile_us(uint32_t percent) {
    if (phase.accepted == 0) return 0;
    uint64_t rank = ((uint64_t)phase.accepted * percent + 99) / 100;
    return (double)phase.latencies_ns[rank ? rank - 1 : 0] / 1e3;
}

static void finish_phase(uint64_t now) {
    phase.active = false;
    qsort(phase.latencies_ns, phase.accepted, sizeof *phase.latencies_ns, ascending);
    printf("{\"phase\":\"register\",\"asked\":%u,\"in_handshake\":%u,\"accepted\":%u,\"refused\":%u,\"failed\":%u,"
           "\"first_failure\":", phase.asked, phase.limit, phase.accepted, phase.refused, phase.failed);
    if (phase.failure[0]) print_string(phase.failure);
    else printf("null");
    printf(",\"seconds\":%.6f,\"p50_us\":%.1f,\"p90_us\":%.1f,\"p99_us\":%.1f,\"max_us\":%.1f,"
           "\"connect_retries\":%u,\"held\":%u,\"lost\":%" PRIu64 ",",
           (double)(now - phase.started_ns) / 1e9, percentile_us(50), percentile_us(90), percentile_us(99),
           percentile_us(100), phase.connect_retries, held, served.lost);
    print_cpu_since(&phase.usage);
    puts("}");
    free(phase.latencies_ns);
    phase.latencies_ns = NULL;
}

/* ---- connections ----------------------------------------------------------------------------- */

static void forget(int fd) {
    struct connection *c = &connections[fd];
    free(c->in.bytes);
    free(c->out.bytes);
    memset(c, 0, sizeof *c);
    close(fd);
}

static void end_handshake(void) {
    phase.in_handshake--;
    phase.ended++;
}

/* Counts one handshake that did not end in an acceptance and keeps the first one's text. */
static void fail(int fd, uint32_t *counter, const char *format, ...) {
    if (phase.failure[0] == 0) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(phase.failure, sizeof phase.failure, format, arguments);
        va_end(arguments);
    }
    (*counter)++;
    end_handshake();
    forget(fd);
}

/* A connection that is gone: a failed handshake, or one of the held ones lost. */
static void gone(int fd, const char *why) {
    if (connections[fd].state != HELD) {
        fail(fd, &phase.failed, "%s before the answer", why);
        return;
    }
    held--;
    served.lost++;
    forget(fd);
}

static void watch(int fd, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(epoll_fd, operation, fd, &event) < 0) die("epoll_ctl");
}

static void keep(struct pending *pending, const char *bytes, size_t length) {
    char *copy = length ? must(malloc(length)) : NULL;
    if (length) memcpy(copy, bytes, length);
    free(pending->bytes);
    *pending = (struct pending){copy, (uint32_t)length};
}

static size_t write_header(char *at, size_t payload, uint8_t type) {
    uint32_t length = htonl((uint32_t)payload + 1);
    memcpy(at, &length, 4);
    at[4] = (char)type;
    return HEADER;
}

static size_t write_registration(char *at, uint32_t number) {
    int payload = sprintf(at + HEADER, "%sbench-%u", BEFORE_ID, number / per_id);
    payload += sprintf(at + HEADER + payload, AFTER_ID, cancellation ? "true" : "false");
    return write_header(at, (size_t)payload, REGISTRATION) + (size_t)payload;
}

/* Writes what is left of the registration; true when it is all out. */
static bool send_registration(int fd) {
    struct connection *c = &connections[fd];
    char frame[sizeof BEFORE_ID + sizeof AFTER_ID + 64];
    size_t length = write_registration(frame, c->number);
    ssize_t n = send(fd, frame + c->sent, length - c->sent, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN) {
        fail(fd, &phase.failed, "send: %s", strerror(errno));
        return false;
    }
    c->sent += n > 0 ? (uint32_t)n : 0;
    c->state = AWAITING;
    return c->sent == length;
}

/* One connect(). A Unix socket with a full backlog says EAGAIN and stays as it was: try again later. */
static bool try_connect(int fd) {
    struct connection *c = &connections[fd];
    if (connect(fd, (struct sockaddr *)&address, address_length) == 0) {
        bool all_out = send_registration(fd);
        if (c->state != FREE) watch(fd, EPOLL_CTL_ADD, all_out ? EPOLLIN : EPOLLOUT);
    } else if (errno == EINPROGRESS) {
        watch(fd, EPOLL_CTL_ADD, EPOLLOUT);
    } else if (errno == EAGAIN) {
        phase.connect_retries++;
        return false;
    } else {
        fail(fd, &phase.failed, "connect: %s", strerror(errno));
    }
    return true;
}

static void start_one(void) {
    phase.started++;
    phase.in_handshake++;
    uint64_t started_ns = now_ns();
    int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || (uint32_t)fd >= max_fds) die("socket");
    if (family == AF_INET) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    connections[fd] = (struct connection){.state = CONNECTING, .number = next_number++, .started_ns = started_ns};
    if (!try_connect(fd)) retries[retry_count++] = fd;
}

/* The oldest first, and no further than the first that still finds the backlog full. */
static void retry_connects(void) {
    uint32_t done = 0;
    while (done < retry_count && try_connect(retries[done])) done++;
    memmove(retries, retries + done, (retry_count - done) * sizeof *retries);
    retry_count -= done;
}

static void close_all(void) {
    uint64_t started_ns = now_ns();
    uint32_t closed = held;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    for (uint32_t fd = 0; fd < max_fds && held > 0; fd++) {
        if (connections[fd].state != HELD) continue;
        held--;
        forget((int)fd);
    }
    next_number = 0;
    printf("{\"phase\":\"close\",\"closed\":%u,\"seconds\":%.6f,\"lost\":%" PRIu64 ",", closed,
           (double)(now_ns() - started_ns) / 1e9, served.lost);
    print_cpu_since(&usage);
    puts("}");
    served.lost = 0;
}

/* ---- frames ---------------------------------------------------------------------------------- */

static void on_answer(int fd, uint8_t type, const char *payload, size_t length) {
    if (type != REGISTRATION_ACK || memmem(payload, length, ACCEPTED, sizeof ACCEPTED - 1) == NULL) {
        fail(fd, &phase.refused, "type 0x%02x: %.*s", type, (int)(length < 200 ? length : 200), payload);
        return;
    }
    phase.latencies_ns[phase.accepted++] = now_ns() - connections[fd].started_ns;
    connections[fd].state = HELD;
    held++;
    end_handshake();
}

/* The number behind the first "request_id": that has one (dialect-neutral events also carry a string). */
static bool find_request_id(const char *payload, size_t length, uint64_t *id) {
    const char *end = payload + length, *at = payload;
    while ((at = memmem(at, (size_t)(end - at), REQUEST_ID, sizeof REQUEST_ID - 1)) != NULL) {
        at += sizeof REQUEST_ID - 1;
        if (at == end || *at < '0' || *at > '9') continue;
        for (*id = 0; at < end && *at >= '0' && *at <= '9'; at++) *id = *id * 10 + (uint64_t)(*at - '0');
        return true;
    }
    return false;
}

/* The URI that is to be sent back, up to its closing quote; NULL when the request is for another one. */
static const char *find_echo(const char *payload, size_t length, int *uri_length) {
    const char *uri = memmem(payload, length, ECHO_URI, sizeof ECHO_URI - 1);
    if (uri == NULL) return NULL;
    uri += sizeof "\"uri\":\"" - 1;
    const char *end = memchr(uri, '"', length - (size_t)(uri - payload));
    *uri_length = end ? (int)(end - uri) : 0;
    return end;
}

static size_t write_decision(char *at, uint64_t id, const char *payload, size_t length) {
    int uri_length, n = sprintf(at + HEADER, "{\"request_id\":%" PRIu64 ",\"decision\":\"allow\"", id);
    const char *end = find_echo(payload, length, &uri_length);
    if (end) n += sprintf(at + HEADER + n, ECHO_HEADER, uri_length, end - uri_length);
    at[HEADER + n++] = '}';
    return write_header(at, (size_t)n, DECISION) + (size_t)n;
}

/* Writes the answer to one frame at `at`, if it has one, and returns how long that is: at most
   HEADER + ANSWER_TEXT + length. */
static size_t answer(char *at, uint8_t type, const char *payload, size_t length) {
    uint64_t id;
    if (type == PING) {
        served.pings++;
        memcpy(at + HEADER, payload, length);
        return write_header(at, length, PONG) + length;
    }
    if (serve && type == REQUEST_HEADERS && find_request_id(payload, length, &id)) {
        served.requests++;
        return write_decision(at, id, payload, length);
    }
    if (type == CANCEL) served.cancels++;
    else served.ignored++;
    return 0;
}

/* Writes `length` bytes behind what already waits; what the socket does not take waits in turn. */
static bool send_answers(int fd, const char *bytes, size_t length) {
    struct pending *out = &connections[fd].out;
    if (out->length) {
        char *joined = must(malloc(out->length + length));
        memcpy(joined, out->bytes, out->length);
        memcpy(joined + out->length, bytes, length);
        free(out->bytes);
        *out = (struct pending){joined, (uint32_t)(out->length + length)};
        return true;
    }
    ssize_t n = send(fd, bytes, length, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN) return false;
    size_t taken = n > 0 ? (size_t)n : 0;
    if (taken < length) {
        keep(out, bytes + taken, length - taken);
        watch(fd, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
    }
    return true;
}

static void on_writable(int fd) {
    struct connection *c = &connections[fd];
    if (c->state == CONNECTING || c->state == AWAITING) {
        int error = 0;
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &(socklen_t){sizeof error});
        if (error) fail(fd, &phase.failed, "connect: %s", strerror(error));
        else if (send_registration(fd)) watch(fd, EPOLL_CTL_MOD, EPOLLIN);
        return;
    }
    ssize_t n = send(fd, c->out.bytes, c->out.length, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN) gone(fd, strerror(errno));
    else if (n > 0) keep(&c->out, c->out.bytes + n, c->out.length - (size_t)n);
    if (c->state == HELD && c->out.length == 0) watch(fd, EPOLL_CTL_MOD, EPOLLIN);
}

static void on_readable(int fd) {
    struct connection *c = &connections[fd];
    size_t kept = c->in.length;
    memcpy(scratch, c->in.bytes ? c->in.bytes : "", kept);
    ssize_t n = recv(fd, scratch + kept, SCRATCH - kept, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        gone(fd, n < 0 ? strerror(errno) : "closed by the listener");
        return;
    }
    size_t end = kept + (size_t)n, at = 0, answered = 0;
    while (end - at >= HEADER) {
        uint32_t length;
        memcpy(&length, scratch + at, 4);
        length = ntohl(length);
        if (length == 0 || length > SCRATCH / 2) {
            gone(fd, "a frame with a length out of range");
            return;
        }
        if (end - at < 4 + (size_t)length) break;
        uint8_t type = (uint8_t)scratch[at + 4];
        const char *payload = scratch + at + HEADER;
        at += 4 + (size_t)length;
        if (c->state == HELD) {
            if (SCRATCH - answered < HEADER + ANSWER_TEXT + (size_t)length) {
                if (!send_answers(fd, answers, answered)) break;
                answered = 0;
            }
            answered += answer(answers + answered, type, payload, length - 1);
        } else {
            on_answer(fd, type, payload, length - 1);
            if (c->state == FREE) return;
        }
    }
    if (end > at || kept) keep(&c->in, scratch + at, end - at);
    if (answered && !send_answers(fd, answers, answered)) gone(fd, strerror(errno));
}

/* ---- phases and commands --------------------------------------------------------------------- */

static void drop_stalled(uint64_t now) {
    for (uint32_t fd = 0; fd < max_fds && phase.in_handshake > 0; fd++) {
        enum state state = connections[fd].state;
        if (state == CONNECTING || state == AWAITING)
            fail((int)fd, &phase.failed, "no progress for %.0f s", (double)stall_ns / 1e9);
    }
    retry_count = 0;
    finish_phase(now);
}

static void run_phase(void) {
    if (retry_count) retry_connects();
    while (phase.in_handshake < phase.limit && phase.started < phase.asked) start_one();
    if (phase.ended == phase.asked) finish_phase(now_ns());
}

static void start_phase(uint32_t asked, uint32_t limit) {
    if (asked == 0 || limit == 0 || (uint64_t)held + asked + SPARE_FDS > max_fds) {
        char text[160];
        snprintf(text, sizeof text, "cannot hold %u connections and open %u more with %u descriptors", held, asked,
                 max_fds);
        print_error(text);
        return;
    }
    memset(&phase, 0, sizeof phase);
    phase.active = true;
    phase.asked = asked;
    phase.limit = limit;
    phase.latencies_ns = must(malloc(asked * sizeof *phase.latencies_ns));
    getrusage(RUSAGE_SELF, &phase.usage);
    phase.started_ns = phase.progress_ns = now_ns();
}

static void print_stats(void) {
    printf("{\"phase\":\"stats\",\"held\":%u,\"requests\":%" PRIu64 ",\"cancels\":%" PRIu64 ",\"pings\":%" PRIu64
           ",\"ignored\":%" PRIu64 ",\"lost\":%" PRIu64 ",",
           held, served.requests, served.cancels, served.pings, served.ignored, served.lost);
    print_cpu_since(&served.usage);
    puts("}");
    memset(&served, 0, sizeof served);
    getrusage(RUSAGE_SELF, &served.usage);
}

static void obey(const char *line) {
    uint32_t asked, limit;
    if (strcmp(line, "quit") == 0) exit(0);
    else if (phase.active) print_error("a register phase is under way");
    else if (strcmp(line, "close") == 0) close_all();
    else if (strcmp(line, "stats") == 0) print_stats();
    else if (sscanf(line, "register %" SCNu32 " %" SCNu32, &asked, &limit) == 2) start_phase(asked, limit);
    else print_error("expected: register M K | close | stats | quit");
}

static void on_command(void) {
    static char buffer[1024];
    static size_t length;
    ssize_t n = read(STDIN_FILENO, buffer + length, sizeof buffer - 1 - length);
    if (n <= 0) exit(0);
    length += (size_t)n;
    buffer[length] = 0;
    char *line = buffer, *end;
    while ((end = strchr(line, '\n')) != NULL) {
        *end = 0;
        obey(line);
        line = end + 1;
    }
    length = strlen(line);
    memmove(buffer, line, length);
    if (length == sizeof buffer - 1) length = 0;
}

static void loop(void) {
    struct epoll_event events[EVENTS];
    for (;;) {
        if (phase.active) run_phase();
        int timeout = retry_count ? RETRY_MS : phase.active ? STALL_CHECK_MS : -1;
        int n = epoll_wait(epoll_fd, events, EVENTS, timeout);
        if (n < 0 && errno != EINTR) die("epoll_wait");
        uint32_t ended = phase.ended;
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == STDIN_FILENO) on_command();
            else if (connections[fd].state == FREE) continue; /* closed by an earlier event of this batch */
            else if (events[i].events & EPOLLOUT) on_writable(fd);
            else on_readable(fd);
        }
        if (!phase.active) continue;
        uint64_t now = now_ns();
        if (phase.ended != ended) phase.progress_ns = now;
        else if (now - phase.progress_ns > stall_ns) drop_stalled(now);
    }
}

/* ---- start ----------------------------------------------------------------------------------- */

static void raise_descriptor_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0) die("getrlimit");
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0) die("setrlimit");
    max_fds = limit.rlim_max > 1 << 20 ? 1 << 20 : (uint32_t)limit.rlim_max;
    /* Grow the kernel's table now: growing it at 256, 512 ... stalls the process for milliseconds. */
    int high = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, max_fds - 1);
    if (high >= 0) close(high);
}

static bool set_address(const char *kind, const char *where) {
    if (strcmp(kind, "uds") == 0) {
        struct sockaddr_un *uds = (struct sockaddr_un *)&address;
        if (strlen(where) >= sizeof uds->sun_path) return false;
        uds->sun_family = AF_UNIX;
        strcpy(uds->sun_path, where);
        family = AF_UNIX;
        address_length = sizeof *uds;
        return true;
    }
    int port = atoi(where);
    if (strcmp(kind, "tcp") != 0 || port <= 0 || port > 65535) return false;
    struct sockaddr_in *tcp = (struct sockaddr_in *)&address;
    tcp->sin_family = AF_INET;
    tcp->sin_port = htons((uint16_t)port);
    tcp->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    family = AF_INET;
    address_length = sizeof *tcp;
    return true;
}

int main(int argc, char **argv) {
    int i = 1;
    for (; i < argc && argv[i][0] == '-'; i++) {
        if (strcmp(argv[i], "--serve") == 0) serve = true;
        else if (strcmp(argv[i], "--no-cancellation") == 0) cancellation = false;
        else if (strcmp(argv[i], "--per-id") == 0 && i + 1 < argc) per_id = (uint32_t)atoi(argv[++i]);
        else if (strcmp(argv[i], "--stall-seconds") == 0 && i + 1 < argc)
            stall_ns = (uint64_t)(atof(argv[++i]) * 1e9);
        else break;
    }
    if (argc - i != 2 || per_id == 0 || stall_ns == 0 || !set_address(argv[i], argv[i + 1])) {
        fprintf(stderr, "usage: loadgen [--serve] [--no-cancellation] [--per-id C] [--stall-seconds S] "
                        "uds PATH | tcp PORT\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    setvbuf(stdout, NULL, _IOLBF, 0);
    raise_descriptor_limit();
    connections = must(calloc(max_fds, sizeof *connections));
    retries = must(calloc(max_fds, sizeof *retries));
    if ((epoll_fd = epoll_create1(EPOLL_CLOEXEC)) < 0) die("epoll_create1");
    watch(STDIN_FILENO, EPOLL_CTL_ADD, EPOLLIN);
    getrusage(RUSAGE_SELF, &served.usage);
    printf("{\"phase\":\"ready\",\"descriptors\":%u}\n", max_fds);
    loop();
}
