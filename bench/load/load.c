/* The load bench's own tools: a stub provider and a load generator, in one program.
 *
 *   load stub  ...   a provider of the OpenAI dialect, plain or TLS, answers and streams
 *   load load  ...   a client: closed loop, open loop, streams, idle connections
 *
 * It owns sockets, framing, clocks and histograms, and refuses to know what stands between client
 * and stub.  Each role is one thread around one epoll set.  Both share a core in the bench, so the
 * code spends few syscalls: one recv and one send per message, level-triggered epoll without an
 * epoll_ctl per request, no probing for EAGAIN after a short read.
 *
 * Every request carries a counter in its body and another in a header; the stub echoes the body's
 * counter in its answer and the client insists on finding it.  So an answer that went to the wrong
 * client, or came from a cache, is a failure and not a fast request.
 *
 * Every buffer has a fixed bound; what overflows it is a failure of that connection.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define EVENTS_MAX 512
#define SECOND_NS 1000000000LL
#define COUNTER_DIGITS 12
#define STAMP_DIGITS 18
#define REQUEST_MARK "bench-request-"
#define ANSWER_MARK "bench-answer-"
#define STAMP_MARK "sent-at-"
#define WATCHED_MAX 64

static void die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

static void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(2);
}

static int64_t clock_ns(clockid_t clock)
{
    struct timespec t;
    if (clock_gettime(clock, &t) != 0) return -1;
    return (int64_t)t.tv_sec * SECOND_NS + t.tv_nsec;
}

static int64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

static void put_digits(char *at, uint64_t value, int digits)
{
    for (int i = digits - 1; i >= 0; i--) {
        at[i] = (char)('0' + value % 10);
        value /= 10;
    }
}

/* Reads exactly `digits` decimal digits; -1 if there are other bytes among them. */
static int64_t take_digits(const char *at, int digits)
{
    int64_t value = 0;
    for (int i = 0; i < digits; i++) {
        if (at[i] < '0' || at[i] > '9') return -1;
        value = value * 10 + (at[i] - '0');
    }
    return value;
}

/* ---- histogram: log-linear, 128 buckets an octave, so a bucket's middle is within 0.4 % ---- */

#define OCTAVE 128
#define BUCKETS (OCTAVE * 36)

struct histogram {
    uint64_t counts[BUCKETS];
    uint64_t total;
    int64_t max;
    double sum;
};

static void histogram_add(struct histogram *h, int64_t value)
{
    if (value < 0) value = 0;
    int exponent = value < 2 * OCTAVE ? 0 : 63 - __builtin_clzll((uint64_t)value) - 7;
    int64_t index = (int64_t)exponent * OCTAVE + (value >> exponent);
    if (index >= BUCKETS) index = BUCKETS - 1;
    h->counts[index]++;
    h->total++;
    h->sum += (double)value;
    if (value > h->max) h->max = value;
}

static double histogram_at(const struct histogram *h, double share)
{
    if (h->total == 0) return 0;
    uint64_t wanted = (uint64_t)(share * (double)h->total + 0.999999), seen = 0;
    if (wanted < 1) wanted = 1;
    for (int64_t i = 0; i < BUCKETS; i++) {
        seen += h->counts[i];
        if (seen < wanted) continue;
        if (i < 2 * OCTAVE) return (double)i;
        int64_t exponent = i / OCTAVE - 1;
        double middle = (double)((i - exponent * OCTAVE) << exponent) + (double)(1LL << exponent) / 2;
        return middle < (double)h->max ? middle : (double)h->max;
    }
    return (double)h->max;
}

/* Nanoseconds in, microseconds out. */
static void histogram_print(const char *name, const struct histogram *h)
{
    printf("\"%s\":{\"count\":%llu,\"mean\":%.3f,\"p50\":%.3f,\"p90\":%.3f,\"p99\":%.3f,\"p99_9\":%.3f,\"max\":%.3f}",
           name, (unsigned long long)h->total, h->total ? h->sum / (double)h->total / 1e3 : 0,
           histogram_at(h, 0.5) / 1e3, histogram_at(h, 0.9) / 1e3, histogram_at(h, 0.99) / 1e3,
           histogram_at(h, 0.999) / 1e3, (double)h->max / 1e3);
}

/* ---- a bounded text under construction ---- */

struct text {
    char *at;
    size_t length, room;
};

static struct text text_new(size_t room)
{
    struct text t = {malloc(room), 0, room};
    if (t.at == NULL) die("out of memory for %zu bytes", room);
    return t;
}

static void text_bytes(struct text *t, const char *bytes, size_t count)
{
    if (count > t->room - t->length) die("a text of %zu bytes does not fit its %zu", t->length + count, t->room);
    memcpy(t->at + t->length, bytes, count);
    t->length += count;
}

static void text_add(struct text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void text_add(struct text *t, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int count = vsnprintf(t->at + t->length, t->room - t->length, format, arguments);
    va_end(arguments);
    if (count < 0 || (size_t)count >= t->room - t->length) die("a text does not fit its %zu bytes", t->room);
    t->length += (size_t)count;
}

/* What people send: prose, code, quotes, other alphabets.  Already escaped for JSON: `plain` as
 * openai-python sends it (UTF-8 as it is), `escaped` as json.dumps does by default. */
static const struct phrase {
    const char *plain, *escaped;
} PHRASES[] = {
    {"The canal was opened at dawn, and the first boats went through before the bells. ", NULL},
    {"He said \\\"wait for the tide\\\" and left.\\n", NULL},
    {"Summarise the following report in three points and keep the figures as they are.\\n\\n", NULL},
    {"Le caf\xc3\xa9 \xc3\xa9tait ferm\xc3\xa9, na\xc3\xafvement. ", "Le caf\\u00e9 \\u00e9tait ferm\\u00e9, na\\u00efvement. "},
    {"```python\\nfor row in rows:\\n    print(row[\\\"id\\\"], row[\\\"name\\\"])\\n```\\n", NULL},
    {"Prices rose by 4.2 % in March and fell by 1.1 % in April; the rest of the year was flat. ", NULL},
    {"\xe6\x97\xa5\xe6\x9c\xac\xe8\xaa\x9e \xe2\x86\x92 English. ", "\\u65e5\\u672c\\u8a9e \\u2192 English. "},
    {"Which of the two routes is shorter, and by how much? Show the steps of the calculation. ", NULL},
};

/* Appends exactly `count` bytes of content. */
static void text_content(struct text *t, size_t count, bool ascii, bool escaped)
{
    size_t turn = t->length;  /* so that messages do not all begin with the same words */
    for (;; turn++) {
        const struct phrase *phrase = &PHRASES[turn % (sizeof PHRASES / sizeof *PHRASES)];
        if (ascii && phrase->escaped != NULL) continue;
        const char *words = escaped && phrase->escaped != NULL ? phrase->escaped : phrase->plain;
        size_t length = strlen(words);
        if (length > count) break;
        text_bytes(t, words, length);
        count -= length;
    }
    while (count-- > 0) text_bytes(t, "x", 1);
}

/* ---- sockets, plain or TLS, behind one pair of calls ---- */

enum { IO_AGAIN = -1, IO_BROKEN = -2 };

static ssize_t tls_result(SSL *tls, int result)
{
    int reason = SSL_get_error(tls, result);
    if (reason == SSL_ERROR_WANT_READ || reason == SSL_ERROR_WANT_WRITE) return IO_AGAIN;
    ERR_clear_error();
    return reason == SSL_ERROR_ZERO_RETURN ? 0 : IO_BROKEN;
}

/* Bytes read, 0 at the end, IO_AGAIN or IO_BROKEN. */
static ssize_t io_recv(int fd, SSL *tls, void *at, size_t room)
{
    if (tls != NULL) {
        int count = SSL_read(tls, at, room > INT32_MAX ? INT32_MAX : (int)room);
        return count > 0 ? count : tls_result(tls, count);
    }
    ssize_t count = recv(fd, at, room, 0);
    if (count >= 0) return count;
    return errno == EAGAIN || errno == EINTR ? IO_AGAIN : IO_BROKEN;
}

static ssize_t io_send(int fd, SSL *tls, const void *at, size_t count)
{
    if (tls != NULL) {
        int sent = SSL_write(tls, at, count > INT32_MAX ? INT32_MAX : (int)count);
        return sent > 0 ? sent : tls_result(tls, sent) == IO_AGAIN ? IO_AGAIN : IO_BROKEN;
    }
    ssize_t sent = send(fd, at, count, MSG_NOSIGNAL);
    if (sent >= 0) return sent;
    return errno == EAGAIN || errno == EINTR ? IO_AGAIN : IO_BROKEN;
}

static void tls_modes(SSL_CTX *context)
{
    /* A partly sent request is sent on from a template that was rewritten meanwhile for others. */
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
}

static void watch(int epoll, int operation, int fd, uint32_t events, void *owner)
{
    struct epoll_event event = {.events = events, .data.ptr = owner};
    if (epoll_ctl(epoll, operation, fd, &event) != 0) die("epoll_ctl: %s", strerror(errno));
}

/* Waits until an event or `due` (an absolute time, 0 = for ever).  epoll_pwait2 takes nanoseconds,
 * and with the timer slack at 1 ns the wake-up is as exact as the kernel's high-resolution timers. */
static int wait_until(int epoll, struct epoll_event *events, int64_t due)
{
    struct timespec pause = {0, 0};
    if (due != 0) {
        int64_t left = due - now_ns();
        if (left > 0) {
            pause.tv_sec = left / SECOND_NS;
            pause.tv_nsec = left % SECOND_NS;
        }
    }
    int count = epoll_pwait2(epoll, events, EVENTS_MAX, due ? &pause : NULL, NULL);
    if (count < 0 && errno != EINTR) die("epoll_pwait2: %s", strerror(errno));
    return count < 0 ? 0 : count;
}

static volatile sig_atomic_t stopping;

static void on_stop(int signal_number)
{
    (void)signal_number;
    stopping = 1;
}

static void process_setup(void)
{
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    prctl(PR_SET_TIMERSLACK, 1UL);
    struct sigaction action = {.sa_handler = on_stop};  /* no SA_RESTART: the wait must end */
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

/* The value of `name` (lower case) if the line is that header, else NULL. */
static const char *header_value(const char *line, const char *end, const char *name, size_t *length)
{
    size_t name_length = strlen(name);
    if ((size_t)(end - line) <= name_length || line[name_length] != ':') return NULL;
    if (strncasecmp(line, name, name_length) != 0) return NULL;
    const char *value = line + name_length + 1;
    while (value < end && (*value == ' ' || *value == '\t')) value++;
    while (end > value && (end[-1] == ' ' || end[-1] == '\t')) end--;
    *length = (size_t)(end - value);
    return value;
}

/* A Content-Length: digits only, at most 15; else -1. */
static int64_t length_value(const char *value, size_t length)
{
    if (length < 1 || length > 15) return -1;
    return take_digits(value, (int)length);
}

/* ==================================== the stub provider ==================================== */

#define PEER_HEAD_MAX 16384
#define WINDOW 1024
#define PEER_OUT_MAX (4 << 20)
#define SCRATCH_MAX (256 << 10)
#define ANSWER_MAX (4 << 20)
#define BODY_MAX (64LL << 20)

enum peer_state { PEER_HANDSHAKE, PEER_HEAD, PEER_BODY, PEER_DELAY, PEER_STREAM };
enum route { ROUTE_CHAT, ROUTE_MODELS, ROUTE_NONE };

struct peer {
    int fd;
    SSL *tls;
    enum peer_state state;
    enum route route;
    bool keep, key_ok, framing_ok, wants_out, dead;
    size_t have;                          /* bytes in head[] */
    int64_t body_left;
    size_t first_length, last_length;     /* the two ends of the body, where the steering fields are */
    int64_t stream_start, interval_ns, due;
    int events_sent, events_total;
    bool usage;
    uint64_t echo, serial;
    size_t timer;                         /* place in the heap, from 1; 0 = none */
    char *out;                            /* what the socket did not take yet */
    size_t out_from, out_length;
    char first[WINDOW], last[WINDOW];
    char head[PEER_HEAD_MAX];
};

static struct {
    int epoll;
    const char *key;
    int answer_bytes, events_total;
    int64_t interval_ns, delay_ns;
    SSL_CTX *tls;
    char *scratch;
    struct text answer, models;
    size_t at_date, at_request_id, at_id, at_echo;
    char date[30];
    time_t date_of;
    uint64_t serial;
    struct peer **heap;
    size_t heap_length, heap_room;
    struct peer *graves[2 * EVENTS_MAX];  /* closed in this turn: later events of it may still name them */
    size_t graves_length;
    uint64_t requests, streams, events, refused, overflows, connections;
} stub;

/* -- timers: a binary heap by due time -- */

static void heap_put(size_t place, struct peer *peer)
{
    stub.heap[place] = peer;
    peer->timer = place;
}

static void heap_sift(size_t place, struct peer *peer)
{
    while (place > 1 && stub.heap[place / 2]->due > peer->due) {
        heap_put(place, stub.heap[place / 2]);
        place /= 2;
    }
    for (;;) {
        size_t child = 2 * place;
        if (child > stub.heap_length) break;
        if (child < stub.heap_length && stub.heap[child + 1]->due < stub.heap[child]->due) child++;
        if (stub.heap[child]->due >= peer->due) break;
        heap_put(place, stub.heap[child]);
        place = child;
    }
    heap_put(place, peer);
}

static void timer_set(struct peer *peer, int64_t due)
{
    peer->due = due;
    if (peer->timer == 0) {
        if (stub.heap_length + 2 > stub.heap_room) {
            stub.heap_room = stub.heap_room ? stub.heap_room * 2 : 1024;
            stub.heap = realloc(stub.heap, stub.heap_room * sizeof *stub.heap);
            if (stub.heap == NULL) die("out of memory for timers");
        }
        peer->timer = ++stub.heap_length;
    }
    heap_sift(peer->timer, peer);
}

static void timer_clear(struct peer *peer)
{
    if (peer->timer == 0) return;
    struct peer *moved = stub.heap[stub.heap_length--];
    if (moved != peer) heap_sift(peer->timer, moved);
    peer->timer = 0;
}

/* -- writing -- */

static void peer_close(struct peer *peer)
{
    if (peer->dead) return;
    peer->dead = true;
    timer_clear(peer);
    if (peer->tls != NULL) SSL_free(peer->tls);
    close(peer->fd);
    free(peer->out);
    peer->out = NULL;
    assert(stub.graves_length < 2 * EVENTS_MAX);
    stub.graves[stub.graves_length++] = peer;
}

static void peer_flush(struct peer *peer)
{
    while (peer->out_from < peer->out_length) {
        ssize_t sent = io_send(peer->fd, peer->tls, peer->out + peer->out_from, peer->out_length - peer->out_from);
        if (sent == IO_AGAIN) return;
        if (sent < 0) {
            peer_close(peer);
            return;
        }
        peer->out_from += (size_t)sent;
    }
    peer->out_from = peer->out_length = 0;
    if (peer->wants_out) {
        peer->wants_out = false;
        watch(stub.epoll, EPOLL_CTL_MOD, peer->fd, EPOLLIN, peer);
    }
    if (!peer->keep && peer->state == PEER_HEAD) peer_close(peer);
}

static void peer_send(struct peer *peer, const char *bytes, size_t count)
{
    while (peer->out_length == 0 && count > 0) {
        ssize_t sent = io_send(peer->fd, peer->tls, bytes, count);
        if (sent == IO_AGAIN) break;
        if (sent < 0) {
            peer_close(peer);
            return;
        }
        bytes += sent;
        count -= (size_t)sent;
    }
    if (count == 0) return;
    /* A reader this slow holds back its own stream only; beyond the bound it is given up. */
    if (peer->out == NULL && (peer->out = malloc(PEER_OUT_MAX)) == NULL) die("out of memory for a slow reader");
    if (count > PEER_OUT_MAX - peer->out_length) {
        stub.overflows++;
        peer_close(peer);
        return;
    }
    memcpy(peer->out + peer->out_length, bytes, count);
    peer->out_length += count;
    if (!peer->wants_out) {
        peer->wants_out = true;
        watch(stub.epoll, EPOLL_CTL_MOD, peer->fd, EPOLLIN | EPOLLOUT, peer);
    }
}

static void date_refresh(void)
{
    time_t second = time(NULL);
    if (second == stub.date_of) return;
    struct tm parts;
    gmtime_r(&second, &parts);
    strftime(stub.date, sizeof stub.date, "%a, %d %b %Y %H:%M:%S GMT", &parts);
    stub.date_of = second;
    memcpy(stub.answer.at + stub.at_date, stub.date, 29);
}

#define RESPONSE_HEADERS                                     \
    "openai-organization: bench-org-4f2k\r\n"                \
    "openai-processing-ms: 412\r\n"                          \
    "openai-version: 2020-10-01\r\n"                         \
    "x-ratelimit-limit-requests: 30000\r\n"                  \
    "x-ratelimit-limit-tokens: 150000000\r\n"                \
    "x-ratelimit-remaining-requests: 29999\r\n"              \
    "x-ratelimit-remaining-tokens: 149999582\r\n"            \
    "x-ratelimit-reset-requests: 2ms\r\n"

/* One answer, written once; only its date, ids and echo change.  Indented, as OpenAI's are. */
static void answer_build(void)
{
    struct text body = text_new(ANSWER_MAX + 4096);
    text_add(&body, "{\n  \"id\": \"chatcmpl-");
    size_t at_id = body.length;
    text_add(&body, "%0*d\",\n  \"object\": \"chat.completion\",\n  \"created\": %lld,\n  \"model\": \"bench-model\",\n",
             COUNTER_DIGITS, 0, (long long)time(NULL));
    text_add(&body, "  \"choices\": [\n    {\n      \"index\": 0,\n      \"message\": {\n        \"role\": \"assistant\",\n"
                    "        \"content\": \"" ANSWER_MARK);
    size_t at_echo = body.length;
    text_add(&body, "%0*d ", COUNTER_DIGITS, 0);
    static const char rest[] =
        "\",\n        \"refusal\": null,\n        \"annotations\": []\n      },\n      \"logprobs\": null,\n"
        "      \"finish_reason\": \"stop\"\n    }\n  ],\n  \"usage\": {\n    \"prompt_tokens\": 187,\n"
        "    \"completion_tokens\": 96,\n    \"total_tokens\": 283,\n    \"prompt_tokens_details\": {\n"
        "      \"cached_tokens\": 0,\n      \"audio_tokens\": 0\n    },\n    \"completion_tokens_details\": {\n"
        "      \"reasoning_tokens\": 0,\n      \"audio_tokens\": 0,\n      \"accepted_prediction_tokens\": 0,\n"
        "      \"rejected_prediction_tokens\": 0\n    }\n  },\n  \"service_tier\": \"default\",\n"
        "  \"system_fingerprint\": \"fp_44709d6fcb\"\n}\n";
    long fill = stub.answer_bytes - (long)(body.length + sizeof rest - 1);
    if (fill > 0) text_content(&body, (size_t)fill, false, false);
    text_bytes(&body, rest, sizeof rest - 1);

    stub.answer = text_new(body.length + 4096);
    text_add(&stub.answer, "HTTP/1.1 200 OK\r\nDate: ");
    stub.at_date = stub.answer.length;
    text_add(&stub.answer, "%29s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n"
                           "Connection: keep-alive\r\n" RESPONSE_HEADERS "x-request-id: req_",
             "", body.length);
    stub.at_request_id = stub.answer.length;
    text_add(&stub.answer, "%0*d\r\n\r\n", COUNTER_DIGITS, 0);
    stub.at_id = stub.answer.length + at_id;
    stub.at_echo = stub.answer.length + at_echo;
    text_bytes(&stub.answer, body.at, body.length);
    free(body.at);

    static const char list[] =
        "{\"object\":\"list\",\"data\":[{\"id\":\"bench-model\",\"object\":\"model\",\"created\":1715367049,"
        "\"owned_by\":\"bench\"}]}";
    stub.models = text_new(1024);
    text_add(&stub.models, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
             sizeof list - 1, list);
}

static void peer_refuse(struct peer *peer, const char *status, const char *message)
{
    char body[256], answer[512];
    int length = snprintf(body, sizeof body, "{\"error\":{\"message\":\"%s\",\"type\":\"invalid_request_error\"}}", message);
    length = snprintf(answer, sizeof answer,
                      "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
                      "Connection: close\r\n\r\n%s",
                      status, length, body);
    stub.refused++;
    peer->keep = false;
    peer_send(peer, answer, (size_t)length);
}

static void peer_ended(struct peer *peer)
{
    if (peer->dead) return;
    peer->state = PEER_HEAD;
    if (!peer->keep && peer->out_length == 0) peer_close(peer);  /* else peer_flush() closes */
}

static void peer_answer(struct peer *peer)
{
    date_refresh();
    put_digits(stub.answer.at + stub.at_request_id, peer->serial, COUNTER_DIGITS);
    put_digits(stub.answer.at + stub.at_id, peer->serial, COUNTER_DIGITS);
    put_digits(stub.answer.at + stub.at_echo, peer->echo, COUNTER_DIGITS);
    peer_send(peer, stub.answer.at, stub.answer.length);
    peer_ended(peer);
}

/* -- streams -- */

/* Appends one event as one HTTP chunk.  The event's length is known only once it is written, so
 * the size line has a fixed width: leading zeros are allowed (RFC 9112, 7.1: 1*HEXDIG). */
static void event_add(struct text *t, struct peer *peer, const char *delta, const char *finish, const char *usage)
{
    size_t size_at = t->length;
    text_add(t, "0000\r\n");
    size_t from = t->length;
    text_add(t,
             "data: {\"id\":\"chatcmpl-%0*llu\",\"object\":\"chat.completion.chunk\",\"created\":%lld,"
             "\"model\":\"bench-model\",\"service_tier\":\"default\",\"system_fingerprint\":\"fp_44709d6fcb\",",
             COUNTER_DIGITS, (unsigned long long)peer->serial, (long long)stub.date_of);
    if (usage != NULL)
        text_add(t, "\"choices\":[],\"usage\":%s}\n\n", usage);
    else
        text_add(t, "\"choices\":[{\"index\":0,\"delta\":%s,\"logprobs\":null,\"finish_reason\":%s}]%s}\n\n", delta, finish,
                 peer->usage ? ",\"usage\":null" : "");
    char size[5];
    snprintf(size, sizeof size, "%04zx", (t->length - from) & 0xffff);
    memcpy(t->at + size_at, size, 4);
    text_add(t, "\r\n");
}

static void stream_begin(struct peer *peer)
{
    date_refresh();
    struct text t = {stub.scratch, 0, SCRATCH_MAX};
    text_add(&t,
             "HTTP/1.1 200 OK\r\nDate: %s\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
             "Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n" RESPONSE_HEADERS "x-request-id: req_%0*llu\r\n\r\n",
             stub.date, COUNTER_DIGITS, (unsigned long long)peer->serial);
    event_add(&t, peer, "{\"role\":\"assistant\",\"content\":\"\",\"refusal\":null}", "null", NULL);
    peer->state = PEER_STREAM;
    peer->stream_start = now_ns();
    peer->events_sent = 0;
    stub.streams++;
    timer_set(peer, peer->stream_start + peer->interval_ns);
    peer_send(peer, t.at, t.length);
}

/* The next event of a stream; its schedule is absolute, so that a late one does not delay the rest. */
static void stream_next(struct peer *peer)
{
    struct text t = {stub.scratch, 0, SCRATCH_MAX};
    if (peer->events_sent < peer->events_total) {
        char delta[64 + STAMP_DIGITS];
        /* The stamp is the last thing to happen before the bytes go out, formatting apart. */
        snprintf(delta, sizeof delta, "{\"content\":\" " STAMP_MARK "%0*lld\"}", STAMP_DIGITS, (long long)now_ns());
        event_add(&t, peer, delta, "null", NULL);
        peer->events_sent++;
        stub.events++;
        timer_set(peer, peer->stream_start + (peer->events_sent + 1) * peer->interval_ns);
        peer_send(peer, t.at, t.length);
        return;
    }
    event_add(&t, peer, "{}", "\"stop\"", NULL);
    if (peer->usage) {
        char usage[256];
        snprintf(usage, sizeof usage,
                 "{\"prompt_tokens\":187,\"completion_tokens\":%d,\"total_tokens\":%d,"
                 "\"prompt_tokens_details\":{\"cached_tokens\":0,\"audio_tokens\":0}}",
                 peer->events_total, peer->events_total + 187);
        event_add(&t, peer, NULL, NULL, usage);
    }
    text_add(&t, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
    peer_send(peer, t.at, t.length);
    peer_ended(peer);
}

/* -- reading -- */

static void window_feed(struct peer *peer, const char *bytes, size_t count)
{
    if (peer->first_length < WINDOW) {
        size_t take = WINDOW - peer->first_length < count ? WINDOW - peer->first_length : count;
        memcpy(peer->first + peer->first_length, bytes, take);
        peer->first_length += take;
    }
    if (count >= WINDOW) {
        memcpy(peer->last, bytes + count - WINDOW, WINDOW);
        peer->last_length = WINDOW;
        return;
    }
    size_t keep = peer->last_length < WINDOW - count ? peer->last_length : WINDOW - count;
    memmove(peer->last, peer->last + peer->last_length - keep, keep);
    memcpy(peer->last + keep, bytes, count);
    peer->last_length = keep + count;
}

static const char *window_find(const struct peer *peer, const char *words, const char **end)
{
    size_t length = strlen(words);
    const char *found = memmem(peer->last, peer->last_length, words, length);
    *end = peer->last + peer->last_length;
    if (found == NULL) {
        found = memmem(peer->first, peer->first_length, words, length);
        *end = peer->first + peer->first_length;
    }
    return found != NULL ? found + length : NULL;
}

/* Is there `name: true` at either end of the body?  A name inside a string would have its quotes escaped. */
static bool window_true(const struct peer *peer, const char *quoted_name)
{
    const char *end, *at = window_find(peer, quoted_name, &end);
    if (at == NULL) return false;
    while (at < end && (*at == ' ' || *at == ':')) at++;
    return end - at >= 4 && memcmp(at, "true", 4) == 0;
}

static int64_t window_number(const struct peer *peer, const char *words, int64_t otherwise)
{
    const char *end, *at = window_find(peer, words, &end);
    if (at == NULL || at == end || *at < '0' || *at > '9') return otherwise;
    int64_t value = 0;
    for (int digits = 0; digits < 12 && at < end && *at >= '0' && *at <= '9'; digits++) value = value * 10 + (*at++ - '0');
    return value;
}

static void peer_request(struct peer *peer)
{
    stub.requests++;
    peer->serial = ++stub.serial;
    if (!peer->framing_ok) {
        peer_refuse(peer, "411 Length Required", "expected a Content-Length of at most 64 MiB");
    } else if (!peer->key_ok) {
        peer_refuse(peer, "401 Unauthorized", "Authorization is not the provider's key");
    } else if (peer->route == ROUTE_MODELS) {
        peer_send(peer, stub.models.at, stub.models.length);
    } else if (peer->route == ROUTE_NONE) {
        peer_refuse(peer, "404 Not Found", "expected POST .../chat/completions or GET .../models");
    } else {
        peer->echo = (uint64_t)window_number(peer, REQUEST_MARK, 0);
        if (window_true(peer, "\"stream\"")) {
            peer->usage = window_true(peer, "\"include_usage\"");
            peer->events_total = (int)window_number(peer, "bench-chunks-", stub.events_total);
            peer->interval_ns = window_number(peer, "-interval-us-", stub.interval_ns / 1000) * 1000;
            stream_begin(peer);
            return;
        }
        if (stub.delay_ns > 0) {
            peer->state = PEER_DELAY;
            timer_set(peer, now_ns() + stub.delay_ns);
            return;
        }
        peer_answer(peer);
        return;
    }
    peer_ended(peer);
}

static bool ends_with(const char *from, const char *end, const char *tail)
{
    size_t length = strlen(tail);
    return (size_t)(end - from) >= length && memcmp(end - length, tail, length) == 0;
}

/* Reads the request's head, `length` bytes with the empty line. */
static void peer_head(struct peer *peer, size_t length)
{
    const char *line = peer->head, *end = peer->head + length;
    const char *eol = memchr(line, '\r', length);
    const char *method_end = memchr(line, ' ', (size_t)(eol - line));
    const char *target = method_end ? method_end + 1 : eol;
    const char *target_end = memchr(target, ' ', (size_t)(eol - target));
    if (target_end == NULL) target_end = eol;
    const char *query = memchr(target, '?', (size_t)(target_end - target));
    const char *path_end = query ? query : target_end;
    size_t method = method_end ? (size_t)(method_end - line) : 0;
    peer->route = ROUTE_NONE;
    if (method == 4 && memcmp(line, "POST", 4) == 0 && ends_with(target, path_end, "/chat/completions")) peer->route = ROUTE_CHAT;
    if (method == 3 && memcmp(line, "GET", 3) == 0 && ends_with(target, path_end, "/models")) peer->route = ROUTE_MODELS;
    peer->keep = ends_with(target_end, eol, "HTTP/1.1");
    peer->key_ok = stub.key == NULL;
    peer->framing_ok = true;
    peer->body_left = peer->route == ROUTE_CHAT ? -1 : 0;
    for (line = eol + 2; line < end - 2; line = eol + 2) {
        eol = memchr(line, '\r', (size_t)(end - line));
        if (eol == NULL || eol[1] != '\n') {
            peer->framing_ok = false;
            break;
        }
        size_t count;
        const char *value;
        switch (*line | 0x20) {
        case 'c':
            if ((value = header_value(line, eol, "content-length", &count)) != NULL) {
                peer->body_left = length_value(value, count);
                if (peer->body_left > BODY_MAX) peer->framing_ok = false;
            } else if ((value = header_value(line, eol, "connection", &count)) != NULL && count == 5 &&
                       strncasecmp(value, "close", 5) == 0) {
                peer->keep = false;
            }
            break;
        case 'a':
            if (stub.key != NULL && (value = header_value(line, eol, "authorization", &count)) != NULL)
                peer->key_ok = count == strlen(stub.key) + 7 && memcmp(value, "Bearer ", 7) == 0 &&
                               memcmp(value + 7, stub.key, count - 7) == 0;
            break;
        case 't':
            if (header_value(line, eol, "transfer-encoding", &count) != NULL) peer->framing_ok = false;
            break;
        }
    }
    if (peer->body_left < 0) {
        peer->framing_ok = false;
        peer->body_left = 0;
    }
    if (!peer->framing_ok) peer->body_left = 0;
    peer->first_length = peer->last_length = 0;
}

/* Takes what head[] holds: whole requests, or the beginning of one. */
static void peer_consume(struct peer *peer)
{
    while (!peer->dead && peer->state == PEER_HEAD && peer->have > 0) {
        const char *blank = memmem(peer->head, peer->have, "\r\n\r\n", 4);
        if (blank == NULL) {
            if (peer->have == PEER_HEAD_MAX) peer_close(peer);
            return;
        }
        size_t used = (size_t)(blank - peer->head) + 4;
        peer_head(peer, used);
        size_t body = peer->have - used;
        if ((int64_t)body > peer->body_left) body = (size_t)peer->body_left;
        window_feed(peer, peer->head + used, body);
        peer->body_left -= (int64_t)body;
        used += body;
        peer->have -= used;
        memmove(peer->head, peer->head + used, peer->have);
        if (peer->body_left > 0)
            peer->state = PEER_BODY;
        else
            peer_request(peer);
    }
}

static void peer_readable(struct peer *peer)
{
    while (!peer->dead) {
        char *at = peer->head + peer->have;
        size_t room = PEER_HEAD_MAX - peer->have;
        if (peer->state == PEER_BODY) {
            at = stub.scratch;
            room = peer->body_left < SCRATCH_MAX ? (size_t)peer->body_left : SCRATCH_MAX;
        }
        if (room == 0) {  /* more pipelined than a client of ours sends */
            peer_close(peer);
            return;
        }
        ssize_t count = io_recv(peer->fd, peer->tls, at, room);
        if (count == IO_AGAIN) return;
        if (count <= 0) {
            peer_close(peer);
            return;
        }
        if (peer->state == PEER_BODY) {
            window_feed(peer, at, (size_t)count);
            peer->body_left -= count;
            if (peer->body_left == 0) {
                peer->state = PEER_HEAD;
                peer_request(peer);
            }
        } else {
            peer->have += (size_t)count;
        }
        if (!peer->dead) peer_consume(peer);
        /* A short read emptied the socket: level-triggered epoll tells when there is more.  Not so
         * under TLS, where decrypted bytes may wait inside the library. */
        if (peer->tls == NULL && (size_t)count < room) return;
    }
}

static void peer_event(struct peer *peer, uint32_t events)
{
    if (peer->dead) return;
    if (peer->state == PEER_HANDSHAKE) {
        int result = SSL_accept(peer->tls);
        if (result != 1) {
            if (tls_result(peer->tls, result) != IO_AGAIN) peer_close(peer);
            return;
        }
        peer->state = PEER_HEAD;
    }
    if (events & EPOLLOUT) peer_flush(peer);
    if (!peer->dead && (events & (EPOLLIN | EPOLLHUP | EPOLLERR))) peer_readable(peer);
}

static void stub_accept(int listener)
{
    for (int i = 0; i < 64; i++) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        int one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct peer *peer = malloc(sizeof *peer);
        if (peer == NULL) die("out of memory for a connection");
        memset(peer, 0, offsetof(struct peer, first));
        peer->fd = fd;
        peer->state = PEER_HEAD;
        if (stub.tls != NULL) {
            peer->tls = SSL_new(stub.tls);
            SSL_set_fd(peer->tls, fd);
            peer->state = PEER_HANDSHAKE;
        }
        stub.connections++;
        watch(stub.epoll, EPOLL_CTL_ADD, fd, EPOLLIN, peer);
    }
}

static const char *const STUB_HELP =
    "load stub [--host 127.0.0.1] [--port 0] [--key KEY] [--cert FILE --private-key FILE]\n"
    "          [--answer-bytes 1024] [--chunks 50] [--interval-us 20000] [--delay-us 0]\n"
    "Prints {\"port\": N} when it listens, and its counts at SIGTERM.\n";

static int stub_main(int count, char **words)
{
    enum { HOST = 1, PORT, KEY, CERT, PRIVATE, ANSWER, CHUNKS, INTERVAL, DELAY, HELP };
    static const struct option options[] = {
        {"host", 1, 0, HOST},       {"port", 1, 0, PORT},           {"key", 1, 0, KEY},
        {"cert", 1, 0, CERT},       {"private-key", 1, 0, PRIVATE}, {"answer-bytes", 1, 0, ANSWER},
        {"chunks", 1, 0, CHUNKS},   {"interval-us", 1, 0, INTERVAL}, {"delay-us", 1, 0, DELAY},
        {"help", 0, 0, HELP},       {0, 0, 0, 0},
    };
    const char *host = "127.0.0.1", *cert = NULL, *private_key = NULL;
    int port = 0;
    stub.answer_bytes = 1024;
    stub.events_total = 50;
    stub.interval_ns = 20000000;
    for (int option; (option = getopt_long(count, words, "", options, NULL)) != -1;) {
        switch (option) {
        case HOST: host = optarg; break;
        case PORT: port = atoi(optarg); break;
        case KEY: stub.key = optarg; break;
        case CERT: cert = optarg; break;
        case PRIVATE: private_key = optarg; break;
        case ANSWER: stub.answer_bytes = atoi(optarg); break;
        case CHUNKS: stub.events_total = atoi(optarg); break;
        case INTERVAL: stub.interval_ns = atoll(optarg) * 1000; break;
        case DELAY: stub.delay_ns = atoll(optarg) * 1000; break;
        case HELP: fputs(STUB_HELP, stdout); return 0;
        default: fputs(STUB_HELP, stderr); return 2;
        }
    }
    if (stub.answer_bytes > ANSWER_MAX) die("--answer-bytes is at most %d", ANSWER_MAX);
    if (cert != NULL) {
        stub.tls = SSL_CTX_new(TLS_server_method());
        tls_modes(stub.tls);
        if (SSL_CTX_use_certificate_chain_file(stub.tls, cert) != 1 ||
            SSL_CTX_use_PrivateKey_file(stub.tls, private_key ? private_key : cert, SSL_FILETYPE_PEM) != 1)
            die("cannot load the certificate %s and its key", cert);
    }
    stub.scratch = malloc(SCRATCH_MAX);
    if (stub.scratch == NULL) die("out of memory");
    answer_build();
    date_refresh();

    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1) die("--host expects an IPv4 address, not %s", host);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 4096) != 0)
        die("cannot listen on %s:%d: %s", host, port, strerror(errno));
    socklen_t length = sizeof address;
    getsockname(listener, (struct sockaddr *)&address, &length);
    stub.epoll = epoll_create1(EPOLL_CLOEXEC);
    watch(stub.epoll, EPOLL_CTL_ADD, listener, EPOLLIN, NULL);
    printf("{\"port\":%d}\n", ntohs(address.sin_port));
    fflush(stdout);

    struct epoll_event events[EVENTS_MAX];
    while (!stopping) {
        int ready = wait_until(stub.epoll, events, stub.heap_length ? stub.heap[1]->due : 0);
        for (int i = 0; i < ready; i++) {
            if (events[i].data.ptr == NULL)
                stub_accept(listener);
            else
                peer_event(events[i].data.ptr, events[i].events);
        }
        int64_t now = now_ns();
        /* At most a batch of timers a turn: a late stub still reads requests, and graves[] holds
         * whoever is closed in either half of the turn. */
        for (int i = 0; i < EVENTS_MAX && stub.heap_length > 0 && stub.heap[1]->due <= now; i++) {
            struct peer *peer = stub.heap[1];
            timer_clear(peer);
            if (peer->state == PEER_STREAM)
                stream_next(peer);
            else
                peer_answer(peer);
            if (!peer->dead && peer->state == PEER_HEAD) peer_consume(peer);
        }
        while (stub.graves_length > 0) free(stub.graves[--stub.graves_length]);
    }
    printf("{\"requests\":%llu,\"streams\":%llu,\"events\":%llu,\"refused\":%llu,\"overflows\":%llu,\"connections\":%llu,"
           "\"cpu_s\":%.6f}\n",
           (unsigned long long)stub.requests, (unsigned long long)stub.streams, (unsigned long long)stub.events,
           (unsigned long long)stub.refused, (unsigned long long)stub.overflows, (unsigned long long)stub.connections,
           (double)clock_ns(CLOCK_PROCESS_CPUTIME_ID) / 1e9);
    return 0;
}

/* ==================================== the load generator ==================================== */

#define IN_MAX 32768
#define KEPT_MAX 16384
#define CLIENTS_MAX 16384
#define FAILURES_MAX 2000
#define GRACE_NS (10 * SECOND_NS)

enum mode { MODE_CLOSED, MODE_OPEN, MODE_STREAMS, MODE_IDLE };
enum phase { PHASE_WARM, PHASE_MEASURE, PHASE_DRAIN };
enum client_state { CLIENT_PARKED, CLIENT_CONNECT, CLIENT_HANDSHAKE, CLIENT_FREE, CLIENT_HEAD, CLIENT_BODY };
enum chunk_state { CHUNK_SIZE, CHUNK_EXTENSION, CHUNK_SIZE_LF, CHUNK_DATA, CHUNK_DATA_CR, CHUNK_DATA_LF, CHUNK_TRAILER, CHUNK_TRAILER_LINE, CHUNK_END_LF };

enum failure { FAIL_NONE, FAIL_CONNECT, FAIL_TLS, FAIL_CLOSED, FAIL_STATUS, FAIL_FRAMING, FAIL_MARKER, FAIL_TOO_LARGE, FAIL_INCOMPLETE, FAIL_TIMEOUT, FAILURES };
static const char *const FAILURE_NAMES[FAILURES] = {"", "connect", "tls", "closed", "status", "framing", "marker", "too_large", "incomplete_stream", "timeout"};

struct client {
    int fd;
    SSL *tls;
    enum client_state state;
    uint32_t events;                       /* what epoll watches for */
    uint64_t counter;
    size_t sent;                           /* of the request */
    int64_t began;                         /* or, in open loop, when it should have begun */
    int repeats_left;
    /* the answer */
    int status;
    bool keep, chunked, marked, done;
    enum chunk_state chunk;
    int64_t left;                          /* of the body, or of this chunk */
    int size_digits;
    int stream_events;
    size_t have, kept_length;
    char in[IN_MAX];
    char kept[KEPT_MAX];                   /* of the body: what the marker, or an unfinished event, needs */
};

static struct {
    int epoll;
    enum mode mode;
    enum phase phase;
    struct sockaddr_in address;
    SSL_CTX *tls;
    const char *host;
    struct text request;
    size_t at_header, at_body;
    uint64_t counter;
    bool same, announce;
    int chunks_expected;
    struct client **clients;
    int clients_count, opened, finished, streaming, connected, asked, wave;
    struct client **ring;                  /* open loop: free connections, first in first out */
    int ring_from, ring_count;
    int64_t start, warm_end, end, deadline, ramp_ns;
    double rate;
    uint64_t issued;
    uint64_t requests, chunks, reconnects, failed, failures[FAILURES];
    int64_t first_complete, last_complete;
    pid_t watched[WATCHED_MAX];
    clockid_t watched_clocks[WATCHED_MAX];
    int watched_count;
    int64_t watched_ns[WATCHED_MAX], own_ns, wall_ns;
    struct histogram latency, delay, first_event;
} run;

static void client_next(struct client *client, int64_t now);
static void client_open(struct client *client);
static void idle_connected(int64_t now);

/* CPU time of whole processes, in nanoseconds, including threads that have ended. */
static void cpu_mark(int sign)
{
    for (int i = 0; i < run.watched_count; i++) {
        int64_t spent = clock_ns(run.watched_clocks[i]);
        if (spent < 0) die("process %d is gone: its CPU time cannot be read", (int)run.watched[i]);
        run.watched_ns[i] += sign * spent;
    }
    run.own_ns += sign * clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    run.wall_ns += sign * now_ns();
}

static void client_watch(struct client *client, uint32_t events)
{
    if (client->events == events) return;
    watch(run.epoll, client->events == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, client->fd, events, client);
    client->events = events;
}

static void client_close(struct client *client)
{
    if (client->fd < 0) return;
    if (client->tls != NULL) SSL_free(client->tls);
    client->tls = NULL;
    close(client->fd);
    client->fd = -1;
    client->events = 0;
    client->have = 0;
    client->state = CLIENT_PARKED;
}

/* Counts a failure, shows the first few, and gives the connection up. */
static void client_failed(struct client *client, enum failure kind, int64_t now)
{
    if (run.failed < 4)
        fprintf(stderr, "load: failure %s: status %d, %d events, answer \"%.*s\"\n", FAILURE_NAMES[kind], client->status,
                client->stream_events, (int)(client->have < 300 ? client->have : 300), client->in);
    run.failures[kind]++;
    run.failed++;
    client_close(client);
    if (run.failed > FAILURES_MAX) {  /* not a measurement any more */
        fprintf(stderr, "load: more than %d failures, giving up\n", FAILURES_MAX);
        stopping = 1;
        return;
    }
    if (run.mode == MODE_IDLE && !run.asked) {
        idle_connected(now);
    } else if (run.mode == MODE_STREAMS || run.mode == MODE_IDLE) {
        client_next(client, now);
    } else if (run.phase != PHASE_DRAIN) {
        client_open(client);
    }
}

static void client_flush(struct client *client, int64_t now)
{
    /* One template serves every connection: the two counters are written into it before each send,
     * so nothing is copied per request, whatever the body's size. */
    put_digits(run.request.at + run.at_header, client->counter, COUNTER_DIGITS);
    put_digits(run.request.at + run.at_body, client->counter, COUNTER_DIGITS);
    while (client->sent < run.request.length) {
        ssize_t sent = io_send(client->fd, client->tls, run.request.at + client->sent, run.request.length - client->sent);
        if (sent == IO_AGAIN) {
            client_watch(client, EPOLLIN | EPOLLOUT);
            return;
        }
        if (sent < 0) {
            client_failed(client, FAIL_CLOSED, now);
            return;
        }
        client->sent += (size_t)sent;
    }
    client_watch(client, EPOLLIN);
}

static void client_begin(struct client *client, int64_t began)
{
    client->state = CLIENT_HEAD;
    client->counter = run.same ? run.counter : ++run.counter;
    client->sent = 0;
    client->began = began;
    client->have = client->kept_length = 0;
    client->status = client->stream_events = 0;
    client->marked = client->done = false;
    client_flush(client, began);
}

static int64_t due_at(uint64_t index) { return run.start + (int64_t)((double)index * 1e9 / run.rate); }

/* The next idle connection that has not asked yet does so. */
static void idle_ask(int64_t now)
{
    while (run.asked < run.clients_count) {
        struct client *client = run.clients[run.asked++];
        if (client->fd < 0) {  /* never connected: counted as failed already */
            run.finished++;
            continue;
        }
        client_begin(client, now);
        return;
    }
}

/* A connection is free: what now? */
static void client_next(struct client *client, int64_t now)
{
    switch (run.mode) {
    case MODE_CLOSED:
        client->state = CLIENT_FREE;
        if (run.phase != PHASE_DRAIN) client_begin(client, now);
        return;
    case MODE_OPEN:
        client->state = CLIENT_FREE;
        if (due_at(run.issued) <= now && due_at(run.issued) < run.end) {
            client_begin(client, due_at(run.issued++));
            return;
        }
        run.ring[(run.ring_from + run.ring_count++) % run.clients_count] = client;
        return;
    case MODE_STREAMS:
        if (client->repeats_left > 0) {
            if (client->fd < 0) {
                client_open(client);
                return;
            }
            client->repeats_left--;
            client_begin(client, now);
        } else {
            client->state = CLIENT_PARKED;
            run.finished++;
        }
        return;
    case MODE_IDLE:
        client->state = CLIENT_PARKED;
        run.finished++;
        idle_ask(now);
        return;
    }
}

/* One more idle connection is open, or has failed to.  First all are opened, then --wave of them
 * ask at once: what so many requests at a time leave allocated belongs to what is measured. */
static void idle_connected(int64_t now)
{
    run.connected++;
    if (run.opened < run.clients_count)
        client_open(run.clients[run.opened++]);
    else if (run.connected == run.clients_count)
        for (int i = 0; i < run.wave; i++) idle_ask(now);
}

static void client_connected(struct client *client, int64_t now)
{
    if (run.tls != NULL && client->tls == NULL) {
        client->tls = SSL_new(run.tls);
        SSL_set_fd(client->tls, client->fd);
        SSL_set_tlsext_host_name(client->tls, run.host);
        client->state = CLIENT_HANDSHAKE;
    }
    if (client->tls != NULL) {
        int result = SSL_connect(client->tls);
        if (result != 1) {
            if (tls_result(client->tls, result) == IO_AGAIN)
                client_watch(client, EPOLLIN);  /* flights of a handshake fit any socket buffer */
            else
                client_failed(client, FAIL_TLS, now);
            return;
        }
    }
    client_watch(client, EPOLLIN);
    if (run.mode == MODE_IDLE) {
        client->state = CLIENT_PARKED;
        idle_connected(now);
    } else {
        client_next(client, now);
    }
}

static void client_open(struct client *client)
{
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (client->fd < 0) die("socket: %s", strerror(errno));
    int one = 1;
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    client->state = CLIENT_CONNECT;
    client->status = client->stream_events = 0;
    if (connect(client->fd, (struct sockaddr *)&run.address, sizeof run.address) == 0) {
        client_connected(client, now_ns());
    } else if (errno == EINPROGRESS) {
        client_watch(client, EPOLLOUT);
    } else {
        client_failed(client, FAIL_CONNECT, now_ns());
    }
}

/* The answer is complete and whole. */
static void client_complete(struct client *client, int64_t now)
{
    if (client->status != 200 || !client->marked) {
        client_failed(client, client->status != 200 ? FAIL_STATUS : FAIL_MARKER, now);
        return;
    }
    if (run.mode == MODE_STREAMS && (!client->done || (run.chunks_expected > 0 && client->stream_events != run.chunks_expected))) {
        client_failed(client, FAIL_INCOMPLETE, now);
        return;
    }
    bool counts = run.mode == MODE_OPEN ? client->began >= run.warm_end : run.phase == PHASE_MEASURE;
    if (counts) {
        run.requests++;
        histogram_add(&run.latency, now - client->began);
        run.last_complete = now;
    }
    if (!client->keep) {
        client_close(client);
        if (run.phase == PHASE_DRAIN) return;
        run.reconnects++;
        if (run.mode == MODE_STREAMS || run.mode == MODE_IDLE)
            client_next(client, now);
        else
            client_open(client);
        return;
    }
    client_next(client, now);
}

/* Complete SSE events in kept[]: stamps out, an unfinished tail stays. */
static void stream_events(struct client *client, int64_t now)
{
    char *from = client->kept, *end = client->kept + client->kept_length, *blank;
    while ((blank = memmem(from, (size_t)(end - from), "\n\n", 2)) != NULL) {
        size_t length = (size_t)(blank - from);
        if (client->done && from[0] != ':') client->marked = false;  /* nothing may follow [DONE] */
        if (length == 12 && memcmp(from, "data: [DONE]", 12) == 0) {
            client->done = true;
        } else {
            char *stamp = memmem(from, length, STAMP_MARK, strlen(STAMP_MARK));
            if (stamp != NULL && blank - stamp >= (ptrdiff_t)strlen(STAMP_MARK) + STAMP_DIGITS) {
                int64_t sent = take_digits(stamp + strlen(STAMP_MARK), STAMP_DIGITS);
                if (sent >= 0) {
                    client->marked = true;
                    run.chunks++;
                    histogram_add(&run.delay, now - sent);
                    if (client->stream_events++ == 0) {
                        histogram_add(&run.first_event, now - client->began);
                        run.streaming++;
                    }
                }
            }
        }
        from = blank + 2;
    }
    client->kept_length = (size_t)(end - from);
    memmove(client->kept, from, client->kept_length);
}

/* Bytes of the body, without framing.  False: more than an unfinished event may be. */
static bool client_payload(struct client *client, const char *bytes, size_t count, int64_t now)
{
    size_t room = KEPT_MAX - client->kept_length;
    if (run.mode != MODE_STREAMS) {
        /* The marker is in the answer's first kilobyte: the rest is framed, not kept. */
        if (count > room) count = room;
        memcpy(client->kept + client->kept_length, bytes, count);
        client->kept_length += count;
        return true;
    }
    while (count > 0) {
        room = KEPT_MAX - client->kept_length;
        if (room == 0) return false;
        size_t take = count < room ? count : room;
        memcpy(client->kept + client->kept_length, bytes, take);
        client->kept_length += take;
        bytes += take;
        count -= take;
        stream_events(client, now);
    }
    return true;
}

static void answer_check(struct client *client)
{
    if (run.mode == MODE_STREAMS) return;
    char wanted[sizeof ANSWER_MARK + COUNTER_DIGITS];
    memcpy(wanted, ANSWER_MARK, sizeof ANSWER_MARK - 1);
    put_digits(wanted + sizeof ANSWER_MARK - 1, client->counter, COUNTER_DIGITS);
    client->marked = memmem(client->kept, client->kept_length, wanted, sizeof wanted - 1) != NULL;
}

/* Status line and headers.  FAIL_NONE if they can be followed. */
static enum failure answer_head(struct client *client, const char *end)
{
    const char *line = client->in, *eol;
    if (end - line < 15 || memcmp(line, "HTTP/1.1 ", 9) != 0) return FAIL_FRAMING;
    client->status = (int)take_digits(line + 9, 3);
    client->keep = true;
    client->chunked = false;
    client->left = -1;
    for (line = memchr(line, '\n', (size_t)(end - line)) + 1; line < end - 2; line = eol + 2) {
        eol = memchr(line, '\r', (size_t)(end - line));
        if (eol == NULL || eol[1] != '\n') return FAIL_FRAMING;
        size_t count;
        const char *value;
        switch (*line | 0x20) {
        case 'c':
            if ((value = header_value(line, eol, "content-length", &count)) != NULL) {
                if (client->left != -1 || (client->left = length_value(value, count)) < 0) return FAIL_FRAMING;
            } else if ((value = header_value(line, eol, "connection", &count)) != NULL && count == 5 &&
                       strncasecmp(value, "close", 5) == 0) {
                client->keep = false;
            }
            break;
        case 't':
            if ((value = header_value(line, eol, "transfer-encoding", &count)) != NULL) {
                if (count != 7 || strncasecmp(value, "chunked", 7) != 0) return FAIL_FRAMING;
                client->chunked = true;
            }
            break;
        }
    }
    /* Exactly one framing: a body that ends with the connection cannot be told from a broken one. */
    if (client->chunked == (client->left >= 0)) return FAIL_FRAMING;
    if (client->chunked) {
        client->chunk = CHUNK_SIZE;
        client->left = 0;
        client->size_digits = 0;
    }
    return FAIL_NONE;
}

/* Takes `count` bytes of a chunked body.  Returns how many were used; *ended when it was the last
 * of them; *bad if they are no chunks. */
static size_t chunks_feed(struct client *client, const char *bytes, size_t count, int64_t now, bool *ended, bool *bad)
{
    size_t i = 0;
    while (i < count && !*ended && !*bad) {
        char c = bytes[i];
        switch (client->chunk) {
        case CHUNK_SIZE: {
            char lower = (char)(c | 0x20);
            int digit = c >= '0' && c <= '9' ? c - '0' : lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
            i++;
            if (digit >= 0 && client->size_digits < 8) {
                client->left = client->left * 16 + digit;
                client->size_digits++;
            } else if (client->size_digits > 0 && c == '\r') {
                client->chunk = CHUNK_SIZE_LF;
            } else if (client->size_digits > 0 && c == ';') {
                client->chunk = CHUNK_EXTENSION;
            } else {
                *bad = true;
            }
            break;
        }
        case CHUNK_EXTENSION:
            i++;
            if (c == '\r') client->chunk = CHUNK_SIZE_LF;
            break;
        case CHUNK_SIZE_LF:
            i++;
            *bad = c != '\n';
            client->chunk = client->left > 0 ? CHUNK_DATA : CHUNK_TRAILER;
            break;
        case CHUNK_DATA: {
            size_t take = count - i < (size_t)client->left ? count - i : (size_t)client->left;
            *bad = !client_payload(client, bytes + i, take, now);
            i += take;
            client->left -= (int64_t)take;
            if (client->left == 0) client->chunk = CHUNK_DATA_CR;
            break;
        }
        case CHUNK_DATA_CR:
            i++;
            *bad = c != '\r';
            client->chunk = CHUNK_DATA_LF;
            break;
        case CHUNK_DATA_LF:
            i++;
            *bad = c != '\n';
            client->chunk = CHUNK_SIZE;
            client->size_digits = 0;
            break;
        case CHUNK_TRAILER:
            i++;
            client->chunk = c == '\r' ? CHUNK_END_LF : CHUNK_TRAILER_LINE;
            break;
        case CHUNK_TRAILER_LINE:
            i++;
            if (c == '\n') client->chunk = CHUNK_TRAILER;
            break;
        case CHUNK_END_LF:
            i++;
            *bad = c != '\n';
            *ended = true;
            break;
        }
    }
    return i;
}

/* Takes what in[] holds. */
static void client_consume(struct client *client, int64_t now)
{
    size_t used = 0;
    if (client->state == CLIENT_HEAD) {
        const char *blank = memmem(client->in, client->have, "\r\n\r\n", 4);
        if (blank == NULL) {
            if (client->have == IN_MAX) client_failed(client, FAIL_TOO_LARGE, now);
            return;
        }
        used = (size_t)(blank - client->in) + 4;
        enum failure failure = answer_head(client, client->in + used);
        if (failure == FAIL_NONE && client->status != 200) failure = FAIL_STATUS;
        if (failure != FAIL_NONE) {
            client_failed(client, failure, now);
            return;
        }
        client->state = CLIENT_BODY;
    }
    bool ended = false, bad = false;
    if (client->chunked) {
        used += chunks_feed(client, client->in + used, client->have - used, now, &ended, &bad);
    } else {
        size_t take = client->have - used;
        if ((int64_t)take > client->left) take = (size_t)client->left;
        bad = !client_payload(client, client->in + used, take, now);
        client->left -= (int64_t)take;
        used += take;
        ended = client->left == 0;
    }
    /* Bytes beyond the answer were never asked for: the framing is broken. */
    if (bad || (ended && (used != client->have || client->sent != run.request.length))) {
        client_failed(client, FAIL_FRAMING, now);
        return;
    }
    if (ended) {
        answer_check(client);
        client->have = 0;
        client_complete(client, now);
        return;
    }
    client->have = 0;
}

static void client_readable(struct client *client)
{
    while (client->fd >= 0) {
        int fd = client->fd;
        size_t room = IN_MAX - client->have;
        ssize_t count = io_recv(fd, client->tls, client->in + client->have, room);
        int64_t now = now_ns();
        if (count == IO_AGAIN) return;
        if (count <= 0) {
            bool busy = client->state == CLIENT_HEAD || client->state == CLIENT_BODY;
            if (busy) {
                client_failed(client, client->stream_events > 0 ? FAIL_INCOMPLETE : FAIL_CLOSED, now);
            } else {
                /* Closed while nobody waited on it: a server may; the next request opens another. */
                bool ringed = run.mode == MODE_OPEN && client->state == CLIENT_FREE;
                client_close(client);
                if (ringed) client->state = CLIENT_FREE;  /* still in the ring: reopened when its turn comes */
            }
            return;
        }
        if (client->state != CLIENT_HEAD && client->state != CLIENT_BODY) {
            client_failed(client, FAIL_FRAMING, now);
            return;
        }
        client->have += (size_t)count;
        client_consume(client, now);
        if (client->fd != fd || (client->tls == NULL && (size_t)count < room)) return;
        if (client->tls != NULL && SSL_pending(client->tls) == 0 && client->state == CLIENT_HEAD && client->have == 0) return;
    }
}

static void client_event(struct client *client, uint32_t events)
{
    int64_t now = now_ns();
    if (client->fd < 0) return;
    if (client->state == CLIENT_CONNECT) {
        int problem = 0;
        socklen_t length = sizeof problem;
        getsockopt(client->fd, SOL_SOCKET, SO_ERROR, &problem, &length);
        if (problem != 0)
            client_failed(client, FAIL_CONNECT, now);
        else
            client_connected(client, now);
        return;
    }
    if (client->state == CLIENT_HANDSHAKE) {
        client_connected(client, now);
        return;
    }
    if ((events & EPOLLOUT) && client->state == CLIENT_HEAD) client_flush(client, now);
    if (client->fd >= 0 && (events & (EPOLLIN | EPOLLHUP | EPOLLERR))) client_readable(client);
}

/* ---- the request ---- */

struct body_form {
    size_t bytes;
    int messages, chunks, interval_us;
    bool spaced, ascii, stream, usage;
    const char *model, *temperature;
};

static void body_write(struct text *t, const struct body_form *form, size_t fill)
{
    const char *comma = form->spaced ? ", " : ",", *colon = form->spaced ? ": " : ":";
    text_add(t, "{\"messages\"%s[", colon);
    for (int i = 0; i < form->messages; i++) {
        bool last = i == form->messages - 1;
        const char *role = i == 0 && form->messages > 1 ? "system" : (form->messages - 1 - i) % 2 ? "assistant" : "user";
        size_t share = last ? fill - fill / (size_t)form->messages * (size_t)i : fill / (size_t)form->messages;
        text_add(t, "%s{\"role\"%s\"%s\"%s\"content\"%s\"", i ? comma : "", colon, role, comma, colon);
        text_content(t, share, form->ascii, form->spaced);
        if (last) text_add(t, " " REQUEST_MARK "%0*d", COUNTER_DIGITS, 0);
        text_add(t, "\"}");
    }
    text_add(t, "]%s\"model\"%s\"%s\"%s\"max_completion_tokens\"%s256%s\"temperature\"%s%s", comma, colon, form->model, comma,
             colon, comma, colon, form->temperature);
    if (form->stream) text_add(t, "%s\"stream\"%strue", comma, colon);
    if (form->stream && form->usage) text_add(t, "%s\"stream_options\"%s{\"include_usage\"%strue}", comma, colon, colon);
    if (form->stream)
        text_add(t, "%s\"user\"%s\"bench-chunks-%d-interval-us-%d\"", comma, colon, form->chunks, form->interval_us);
    text_add(t, "}");
}

static void request_build(const char *path, const char *host, const char *key, bool full, bool identity, const struct body_form *form)
{
    struct text body = text_new(form->bytes + (size_t)form->messages * 64 + 4096);
    body_write(&body, form, 0);
    size_t frame = body.length, fill = form->bytes > frame ? form->bytes - frame : 0;
    body.length = 0;
    body_write(&body, form, fill);

    struct text *t = &run.request;
    *t = text_new(body.length + 4096);
    text_add(t, "POST %s HTTP/1.1\r\nHost: %s\r\nAccept-Encoding: %s\r\nConnection: keep-alive\r\n", path, host,
             identity ? "identity" : "gzip, deflate");
    text_add(t, "Accept: application/json\r\nContent-Type: application/json\r\nUser-Agent: OpenAI/Python 2.8.1\r\n");
    text_add(t, "X-Stainless-Lang: python\r\nX-Stainless-Package-Version: 2.8.1\r\n");
    if (full)
        text_add(t, "X-Stainless-OS: Linux\r\nX-Stainless-Arch: x64\r\nX-Stainless-Runtime: CPython\r\n"
                    "X-Stainless-Runtime-Version: 3.11.2\r\nX-Stainless-Async: false\r\n"
                    "x-stainless-retry-count: 0\r\nx-stainless-read-timeout: 600\r\n");
    text_add(t, "Authorization: Bearer %s\r\nContent-Length: %zu\r\nX-Request-Counter: ", key, body.length);
    run.at_header = t->length;
    text_add(t, "%0*d\r\n\r\n", COUNTER_DIGITS, 0);
    size_t body_at = t->length;
    text_bytes(t, body.at, body.length);
    free(body.at);
    const char *mark = memmem(t->at + body_at, t->length - body_at, REQUEST_MARK, strlen(REQUEST_MARK));
    assert(mark != NULL);
    run.at_body = (size_t)(mark - t->at) + strlen(REQUEST_MARK);
}

/* ---- the run ---- */

static void watched_parse(char *list)
{
    for (char *word = strtok(list, ","); word != NULL; word = strtok(NULL, ",")) {
        if (run.watched_count == WATCHED_MAX) die("--watch takes at most %d processes", WATCHED_MAX);
        pid_t pid = (pid_t)atoi(word);
        clockid_t clock;
        if (clock_getcpuclockid(pid, &clock) != 0) die("--watch: no process %s", word);
        run.watched[run.watched_count] = pid;
        run.watched_clocks[run.watched_count++] = clock;
    }
}

static void phase_turn(int64_t now)
{
    if (run.mode == MODE_STREAMS || run.mode == MODE_IDLE) return;
    if (run.phase == PHASE_WARM && now >= run.warm_end) {
        run.phase = PHASE_MEASURE;
        cpu_mark(-1);
    }
    if (run.phase == PHASE_MEASURE && now >= run.end) {
        run.phase = PHASE_DRAIN;
        cpu_mark(+1);
        run.deadline = now + GRACE_NS;
    }
}

static int in_flight(void)
{
    int count = 0;
    for (int i = 0; i < run.clients_count; i++)
        count += run.clients[i]->state == CLIENT_HEAD || run.clients[i]->state == CLIENT_BODY;
    return count;
}

/* Starts whatever is due; the time of what is due next. */
static int64_t start_due(int64_t now)
{
    int64_t next = run.deadline;
    if (run.mode == MODE_OPEN) {
        while (run.ring_count > 0 && due_at(run.issued) <= now && due_at(run.issued) < run.end) {
            struct client *client = run.ring[run.ring_from];
            run.ring_from = (run.ring_from + 1) % run.clients_count;
            run.ring_count--;
            if (client->fd < 0)
                client_open(client);  /* takes its request when it is connected */
            else
                client_begin(client, due_at(run.issued++));
        }
        if (run.ring_count > 0 && due_at(run.issued) < run.end) next = due_at(run.issued);
    }
    if (run.mode == MODE_STREAMS) {
        while (run.opened < run.clients_count) {
            int64_t due = run.start + run.ramp_ns * run.opened / run.clients_count;
            if (due > now) {
                next = due;
                break;
            }
            client_open(run.clients[run.opened++]);
        }
    }
    int64_t turn = run.phase == PHASE_WARM ? run.warm_end : run.phase == PHASE_MEASURE ? run.end : run.deadline;
    if (run.mode == MODE_STREAMS || run.mode == MODE_IDLE) turn = run.deadline;
    return next < turn ? next : turn;
}

static bool run_over(int64_t now)
{
    if (stopping) return true;
    switch (run.mode) {
    case MODE_CLOSED:
    case MODE_OPEN: return run.phase == PHASE_DRAIN && (now >= run.deadline || in_flight() == 0);
    case MODE_STREAMS:
    case MODE_IDLE: return run.finished == run.clients_count || now >= run.deadline;
    }
    return true;
}

/* Holds the idle connections until stdin says go on, then counts those that were dropped meanwhile. */
static int idle_hold(void)
{
    printf("{\"event\":\"ready\",\"connections\":%d,\"failures\":%llu}\n", run.finished, (unsigned long long)run.failed);
    fflush(stdout);
    char byte;
    while (read(STDIN_FILENO, &byte, 1) < 0 && errno == EINTR && !stopping) continue;
    int dropped = 0;
    for (int i = 0; i < run.clients_count; i++) {
        ssize_t count = run.clients[i]->fd < 0 ? 0 : recv(run.clients[i]->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
        dropped += count == 0 || (count < 0 && errno != EAGAIN);
    }
    return dropped;
}

static void report_print(const char *mode, int dropped)
{
    double seconds = (double)run.wall_ns / 1e9;
    printf("{\"mode\":\"%s\",\"requests\":%llu,\"failures\":%llu,\"failed\":{", mode, (unsigned long long)run.requests,
           (unsigned long long)run.failed);
    const char *comma = "";
    for (int i = 1; i < FAILURES; i++)
        if (run.failures[i]) {
            printf("%s\"%s\":%llu", comma, FAILURE_NAMES[i], (unsigned long long)run.failures[i]);
            comma = ",";
        }
    printf("},\"duration_s\":%.6f,\"rate\":%.1f,\"connections\":%d,\"request_bytes\":%zu,\"reconnects\":%llu,\"dropped\":%d,",
           seconds, seconds > 0 ? (double)run.requests / seconds : 0, run.clients_count, run.request.length,
           (unsigned long long)run.reconnects, dropped);
    histogram_print("latency_us", &run.latency);
    if (run.mode == MODE_STREAMS) {
        printf(",\"chunks\":%llu,", (unsigned long long)run.chunks);
        histogram_print("chunk_delay_us", &run.delay);
        putchar(',');
        histogram_print("first_event_us", &run.first_event);
    }
    printf(",\"cpu_s\":%.6f,\"watched\":[", (double)run.own_ns / 1e9);
    for (int i = 0; i < run.watched_count; i++)
        printf("%s{\"pid\":%d,\"cpu_s\":%.9f}", i ? "," : "", (int)run.watched[i], (double)run.watched_ns[i] / 1e9);
    printf("]}\n");
}

static const char *const LOAD_HELP =
    "load load --port N [--host 127.0.0.1] [--path /v1/chat/completions] [--key KEY] [--tls] [--sni NAME]\n"
    "  closed loop   [--connections 64] [--duration 5] [--warmup 1]\n"
    "  open loop     --rate R and the same; latency counts from when a request should have begun\n"
    "  streams       --streams K [--repeat 1] [--ramp 0.5] [--chunks 50] [--interval-us 20000] [--usage] [--announce]\n"
    "  idle          --idle N [--wave 64]: opens N, one request on each, wave at a time, then a ready line, and\n"
    "                holds until stdin speaks or ends\n"
    "  body          [--bytes 1024] [--messages M] [--spaced] [--ascii] [--same] [--full-headers] [--identity]\n"
    "                [--model bench-model] [--temperature 0.7]\n"
    "  [--watch PID,...] CPU time of these processes over the measured time   [--timeout 60]\n"
    "Prints one JSON line; times in microseconds.\n";

static int load_main(int count, char **words)
{
    enum { HOST = 1, PORT, PATH, KEY, TLS, SNI, CONNECTIONS, DURATION, WARMUP, RATE, STREAMS, REPEAT, RAMP, CHUNKS, INTERVAL, USAGE,
           ANNOUNCE, IDLE, WAVE, BYTES, MESSAGES, SPACED, ASCII, SAME, FULL, IDENTITY, MODEL, TEMPERATURE, WATCH, TIMEOUT, HELP };
    static const struct option options[] = {
        {"host", 1, 0, HOST}, {"port", 1, 0, PORT}, {"path", 1, 0, PATH}, {"key", 1, 0, KEY}, {"tls", 0, 0, TLS}, {"sni", 1, 0, SNI},
        {"connections", 1, 0, CONNECTIONS}, {"duration", 1, 0, DURATION}, {"warmup", 1, 0, WARMUP}, {"rate", 1, 0, RATE},
        {"streams", 1, 0, STREAMS}, {"repeat", 1, 0, REPEAT}, {"ramp", 1, 0, RAMP}, {"chunks", 1, 0, CHUNKS},
        {"interval-us", 1, 0, INTERVAL}, {"usage", 0, 0, USAGE}, {"announce", 0, 0, ANNOUNCE}, {"idle", 1, 0, IDLE}, {"wave", 1, 0, WAVE},
        {"bytes", 1, 0, BYTES}, {"messages", 1, 0, MESSAGES}, {"spaced", 0, 0, SPACED}, {"ascii", 0, 0, ASCII}, {"same", 0, 0, SAME},
        {"full-headers", 0, 0, FULL}, {"identity", 0, 0, IDENTITY}, {"model", 1, 0, MODEL}, {"temperature", 1, 0, TEMPERATURE}, {"watch", 1, 0, WATCH},
        {"timeout", 1, 0, TIMEOUT}, {"help", 0, 0, HELP}, {0, 0, 0, 0},
    };
    static const char *const MODES[] = {"closed", "open", "streams", "idle"};
    struct body_form form = {.bytes = 1024, .chunks = 50, .interval_us = 20000, .model = "bench-model", .temperature = "0.7"};
    const char *host = "127.0.0.1", *path = "/v1/chat/completions", *key = "bench-key";
    int port = 0, connections = 64, repeat = 1;
    double duration = 5, warmup = 1, ramp = 0.5, timeout = 60;
    bool full = false, identity = false, tls = false;
    run.host = "localhost";
    run.mode = MODE_CLOSED;
    run.wave = 64;
    for (int option; (option = getopt_long(count, words, "", options, NULL)) != -1;) {
        switch (option) {
        case HOST: host = optarg; break;
        case PORT: port = atoi(optarg); break;
        case PATH: path = optarg; break;
        case KEY: key = optarg; break;
        case TLS: tls = true; break;
        case SNI: run.host = optarg; break;
        case CONNECTIONS: connections = atoi(optarg); break;
        case DURATION: duration = atof(optarg); break;
        case WARMUP: warmup = atof(optarg); break;
        case RATE: run.mode = MODE_OPEN; run.rate = atof(optarg); break;
        case STREAMS: run.mode = MODE_STREAMS; connections = atoi(optarg); form.stream = true; break;
        case REPEAT: repeat = atoi(optarg); break;
        case RAMP: ramp = atof(optarg); break;
        case CHUNKS: form.chunks = atoi(optarg); break;
        case INTERVAL: form.interval_us = atoi(optarg); break;
        case USAGE: form.usage = true; break;
        case ANNOUNCE: run.announce = true; break;
        case IDLE: run.mode = MODE_IDLE; connections = atoi(optarg); break;
        case WAVE: run.wave = atoi(optarg); break;
        case BYTES: form.bytes = (size_t)atoll(optarg); break;
        case MESSAGES: form.messages = atoi(optarg); break;
        case SPACED: form.spaced = true; break;
        case ASCII: form.ascii = true; break;
        case SAME: run.same = true; break;
        case FULL: full = true; break;
        case IDENTITY: identity = true; break;
        case MODEL: form.model = optarg; break;
        case TEMPERATURE: form.temperature = optarg; break;
        case WATCH: watched_parse(optarg); break;
        case TIMEOUT: timeout = atof(optarg); break;
        case HELP: fputs(LOAD_HELP, stdout); return 0;
        default: fputs(LOAD_HELP, stderr); return 2;
        }
    }
    if (port <= 0 || port > 65535) die("--port is needed");
    if (connections < 1 || connections > CLIENTS_MAX) die("1 to %d connections, not %d", CLIENTS_MAX, connections);
    if (run.mode == MODE_OPEN && run.rate <= 0) die("--rate must be above 0");
    if (form.bytes > (size_t)BODY_MAX) die("--bytes is at most %lld", (long long)BODY_MAX);
    if (form.messages <= 0) form.messages = form.bytes >= 131072 ? 40 : form.bytes >= 16384 ? 20 : 2;
    run.address.sin_family = AF_INET;
    run.address.sin_port = htons((uint16_t)port);
    if (inet_pton(AF_INET, host, &run.address.sin_addr) != 1) die("--host expects an IPv4 address, not %s", host);
    if (tls) {
        run.tls = SSL_CTX_new(TLS_client_method());
        tls_modes(run.tls);
        SSL_CTX_set_verify(run.tls, SSL_VERIFY_NONE, NULL);
    }
    char host_header[320];
    snprintf(host_header, sizeof host_header, "%s:%d", tls ? run.host : host, port);
    request_build(path, host_header, key, full, identity, &form);
    /* From the clock, so that no two runs send the same body. */
    run.counter = (uint64_t)(clock_ns(CLOCK_REALTIME) / 1000) % 1000000000000ULL / 2;
    run.chunks_expected = form.stream ? form.chunks : 0;
    run.clients_count = connections;
    run.clients = calloc((size_t)connections, sizeof *run.clients);
    run.ring = calloc((size_t)connections, sizeof *run.ring);
    if (run.clients == NULL || run.ring == NULL) die("out of memory");
    for (int i = 0; i < connections; i++) {
        struct client *client = run.clients[i] = malloc(sizeof *client);
        if (client == NULL) die("out of memory for %d connections", connections);
        memset(client, 0, offsetof(struct client, in));
        client->fd = -1;
        client->repeats_left = repeat;
    }
    run.epoll = epoll_create1(EPOLL_CLOEXEC);
    run.start = now_ns();
    run.warm_end = run.start + (int64_t)(warmup * 1e9);
    run.end = run.warm_end + (int64_t)(duration * 1e9);
    run.ramp_ns = (int64_t)(ramp * 1e9);
    run.deadline = run.start + (int64_t)(timeout * 1e9);
    if (run.mode == MODE_CLOSED || run.mode == MODE_OPEN) {
        run.deadline = run.end + GRACE_NS;
        while (run.opened < connections) client_open(run.clients[run.opened++]);
    } else {
        run.phase = PHASE_MEASURE;
        cpu_mark(-1);
    }
    /* A few at a time: the listen backlog of an ordinary server is 511. */
    if (run.mode == MODE_IDLE)
        for (int i = 0; i < 64 && run.opened < connections; i++) client_open(run.clients[run.opened++]);

    struct epoll_event events[EVENTS_MAX];
    for (int64_t now = now_ns(); !run_over(now); now = now_ns()) {
        int ready = wait_until(run.epoll, events, start_due(now));
        for (int i = 0; i < ready; i++) client_event(events[i].data.ptr, events[i].events);
        phase_turn(now_ns());
        if (run.announce && run.streaming >= connections) {
            printf("{\"event\":\"ready\",\"streams\":%d}\n", run.streaming);
            fflush(stdout);
            run.announce = false;
        }
    }
    if (run.phase == PHASE_MEASURE) cpu_mark(+1);
    int unfinished = in_flight();
    if (run.mode == MODE_STREAMS) {
        unfinished = 0;
        for (int i = 0; i < connections; i++) unfinished += run.clients[i]->repeats_left + (run.clients[i]->state >= CLIENT_HEAD);
    }
    if (run.mode == MODE_OPEN)  /* what was due and never got a connection */
        while (due_at(run.issued) < run.end && unfinished < INT32_MAX) {
            run.issued++;
            unfinished++;
        }
    run.failures[FAIL_TIMEOUT] += (uint64_t)unfinished;
    run.failed += (uint64_t)unfinished;
    int dropped = run.mode == MODE_IDLE && !stopping ? idle_hold() : 0;
    report_print(MODES[run.mode], dropped);
    return 0;
}

int main(int count, char **words)
{
    process_setup();
    if (count >= 2 && strcmp(words[1], "stub") == 0) return stub_main(count - 1, words + 1);
    if (count >= 2 && strcmp(words[1], "load") == 0) return load_main(count - 1, words + 1);
    fputs(STUB_HELP, stderr);
    fputs(LOAD_HELP, stderr);
    return 2;
}
