/* gRPC load on loopback from one thread, closed loop: unary calls over HTTP/2, each stream asks again as it is answered.

   grpc_loop PORT PATH MESSAGES CONNECTIONS STREAMS WARM_S SECONDS ANSWERS

   MESSAGES holds encoded messages of at most 16 kB, each after a line with its length in bytes; they are sent in turn.
   Every response is compared byte by byte with those that the same message was answered with before; each one that
   differs is kept, at most eight per message, and written to ANSWERS (a line "MESSAGE LENGTH", then the bytes) for the
   caller to judge. `unlike` counts those beyond. A call fails if its stream ends without a message, as it does with
   any status but OK, or is reset. Prints one JSON object. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE };
enum { ACK = 1, END_STREAM = 1, END_HEADERS = 4, PADDED = 8 };
enum { MOST_CONNECTIONS = 256, MOST_STREAMS = 256, MOST_MESSAGE = 16000, INPUT = 1 << 20, ANSWER = 1 << 16 };
enum { MOST_KINDS = 8, FIRST_WINDOW = 65535, RENEW = 1 << 29 };
static const double GRACE_S = 5.0;

typedef struct { uint8_t *bytes; size_t size; } Text;
typedef struct { Text text, kinds[MOST_KINDS]; int kind_count; } Message;
typedef struct { uint32_t id; int busy, message; double sent; size_t have; uint8_t *answer; } Stream;
typedef struct {
  int fd, waiting[MOST_STREAMS], waiting_count;
  uint32_t next_id; int64_t window, read;
  size_t have, out; uint8_t *input, *output; Stream *streams;
} Connection;

static Message *messages; static size_t message_count, next_message;
static Connection connections[MOST_CONNECTIONS]; static int connection_count, stream_count, open_calls;
static uint8_t first_head[1024], later_head[64]; static size_t first_size, later_size;
static double *times; static size_t time_count, time_room;
static long ok, failed, broken, unlike, calls; static double origin, begin_s, end_s; static int poll_fd, port;

static void stop(const char *why) { fprintf(stderr, "grpc_loop: %s: %s\n", why, strerror(errno)); exit(1); }

static double clock_s(clockid_t which) {
  struct timespec t; clock_gettime(which, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
static double now(void) { return clock_s(CLOCK_MONOTONIC) - origin; }

static void *room(size_t size) { void *found = malloc(size); if (!found) stop("memory"); return found; }

static void read_messages(const char *name) {
  FILE *file = fopen(name, "rb"); size_t size;
  if (!file) stop(name);
  while (fscanf(file, "%zu", &size) == 1 && fgetc(file) == '\n') {
    if (size > MOST_MESSAGE) { errno = EMSGSIZE; stop(name); }
    if (!(messages = realloc(messages, (message_count + 1) * sizeof *messages))) stop("memory");
    Message *m = &messages[message_count++];
    memset(m, 0, sizeof *m);
    m->text.bytes = room(size + 5); m->text.size = size + 5;
    uint8_t prefix[5] = {0, (uint8_t)(size >> 24), (uint8_t)(size >> 16), (uint8_t)(size >> 8), (uint8_t)size};
    memcpy(m->text.bytes, prefix, 5);
    if (fread(m->text.bytes + 5, 1, size, file) != size) stop(name);
  }
  fclose(file);
  if (!message_count) stop("no messages");
}

/* A head by HPACK: as other clients do, the first one puts its fields into the table, the later ones name them there. */
static void add_field(int name_index, const char *name, const char *value) {
  uint8_t *to = first_head + first_size;
  *to++ = (uint8_t)(0x40 | name_index);
  if (!name_index) { *to++ = (uint8_t)strlen(name); to = mempcpy(to, name, strlen(name)); }
  *to++ = (uint8_t)strlen(value); to = mempcpy(to, value, strlen(value));
  first_size = (size_t)(to - first_head);
}

static void build_heads(const char *path) {
  char authority[32];
  const uint8_t fixed[] = {0x83, 0x86}; /* :method POST, :scheme http */
  if (strlen(path) > 126) { errno = E2BIG; stop(path); }
  snprintf(authority, sizeof authority, "127.0.0.1:%d", port);
  memcpy(first_head, fixed, 2); memcpy(later_head, fixed, 2); first_size = 2;
  add_field(4, ":path", path); add_field(1, ":authority", authority); add_field(0, "te", "trailers");
  add_field(31, "content-type", "application/grpc"); add_field(58, "user-agent", "grpc-loop/1");
  for (int i = 0; i < 5; i++) later_head[2 + i] = (uint8_t)(0x80 | (62 + 4 - i));
  later_size = 7;
}

static uint8_t *put_frame(uint8_t *to, size_t size, int type, int flags, uint32_t stream) {
  uint8_t head[9] = {(uint8_t)(size >> 16), (uint8_t)(size >> 8), (uint8_t)size, (uint8_t)type, (uint8_t)flags,
                     (uint8_t)(stream >> 24), (uint8_t)(stream >> 16), (uint8_t)(stream >> 8), (uint8_t)stream};
  return mempcpy(to, head, 9);
}

static uint32_t number_at(const uint8_t *from) {
  return (uint32_t)from[0] << 24 | (uint32_t)from[1] << 16 | (uint32_t)from[2] << 8 | from[3];
}

static void write_out(Connection *c) {
  if (c->out && send(c->fd, c->output, c->out, MSG_NOSIGNAL) != (ssize_t)c->out) stop("send");
  c->out = 0;
}

static void add_out(Connection *c, int type, int flags, uint32_t stream, const uint8_t *bytes, size_t size) {
  if (c->out + size + 9 > INPUT) write_out(c);
  uint8_t *to = put_frame(c->output + c->out, size, type, flags, stream);
  memcpy(to, bytes, size);
  c->out += size + 9;
}

static void add_window(Connection *c, uint32_t size) {
  uint8_t bytes[4] = {(uint8_t)(size >> 24), (uint8_t)(size >> 16), (uint8_t)(size >> 8), (uint8_t)size};
  add_out(c, WINDOW_UPDATE, 0, 0, bytes, 4);
}

static void open_connection(Connection *c) {
  static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int one = 1;
  if ((c->fd = socket(AF_INET, SOCK_STREAM, 0)) < 0) stop("socket");
  if (connect(c->fd, (struct sockaddr *)&to, sizeof to)) stop("connect");
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  c->input = room(INPUT); c->output = room(INPUT); c->streams = calloc((size_t)stream_count, sizeof *c->streams);
  if (!c->streams) stop("memory");
  for (int i = 0; i < stream_count; i++) c->streams[i].answer = room(ANSWER);
  c->next_id = 1; c->window = FIRST_WINDOW;
  memcpy(c->output, preface, sizeof preface - 1); c->out = sizeof preface - 1;
  add_out(c, SETTINGS, 0, 0, NULL, 0);
  add_window(c, 0x7fffffff - FIRST_WINDOW);
  struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
  if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &e)) stop("epoll");
}

static void ask(Connection *c, int slot) {
  Stream *s = &c->streams[slot];
  Message *m = &messages[next_message % message_count];
  if (c->window < (int64_t)m->text.size) { c->waiting[c->waiting_count++] = slot; return; }
  int first = c->next_id == 1;
  s->id = c->next_id; s->busy = 1; s->have = 0; s->sent = now();
  s->message = (int)(next_message++ % message_count);
  c->next_id += 2; c->window -= (int64_t)m->text.size; open_calls++;
  add_out(c, HEADERS, END_HEADERS, s->id, first ? first_head : later_head, first ? first_size : later_size);
  add_out(c, DATA, END_STREAM, s->id, m->text.bytes, m->text.size);
}

static void ask_waiting(Connection *c) {
  int count = c->waiting_count, slots[MOST_STREAMS];
  memcpy(slots, c->waiting, sizeof *slots * (size_t)count);
  c->waiting_count = 0;
  for (int i = 0; i < count; i++) ask(c, slots[i]);
}

static int is_known(Message *m, const uint8_t *bytes, size_t size) {
  for (int i = 0; i < m->kind_count; i++)
    if (m->kinds[i].size == size && !memcmp(m->kinds[i].bytes, bytes, size)) return 1;
  if (m->kind_count == MOST_KINDS) return 0;
  Text *kind = &m->kinds[m->kind_count++];
  kind->bytes = room(size); kind->size = size; memcpy(kind->bytes, bytes, size);
  return 1;
}

static void count_answer(Stream *s, int was_reset) {
  double t = now();
  int is_whole = !was_reset && s->have >= 5 && !s->answer[0] && number_at(s->answer + 1) == s->have - 5;
  int is_alike = is_whole && is_known(&messages[s->message], s->answer + 5, s->have - 5);
  calls++;
  if (!is_whole) failed++;
  if (is_whole && !is_alike) unlike++;
  if (!is_whole || t < begin_s || t >= end_s) return;
  ok++;
  if (time_count == time_room) {
    time_room = time_room ? 2 * time_room : 65536;
    if (!(times = realloc(times, time_room * sizeof *times))) stop("memory");
  }
  times[time_count++] = t - s->sent;
}

static void end_stream(Connection *c, Stream *s, int was_reset) {
  count_answer(s, was_reset);
  s->busy = 0; open_calls--;
  if (now() < end_s) ask(c, (int)(s - c->streams));
}

static Stream *find_stream(Connection *c, uint32_t id) {
  for (int i = 0; i < stream_count; i++)
    if (c->streams[i].busy && c->streams[i].id == id) return &c->streams[i];
  return NULL;
}

static void read_data(Connection *c, Stream *s, const uint8_t *bytes, size_t size, int flags) {
  c->read += (int64_t)size;
  if (c->read > RENEW) { add_window(c, (uint32_t)c->read); c->read = 0; }
  if (flags & PADDED || s->have + size > ANSWER) { errno = EMSGSIZE; stop("a response"); }
  memcpy(s->answer + s->have, bytes, size);
  s->have += size;
}

static void read_frame(Connection *c, int type, int flags, uint32_t id, const uint8_t *bytes, size_t size) {
  Stream *s = type == DATA || type == HEADERS || type == RST_STREAM ? find_stream(c, id) : NULL;
  if (type == SETTINGS && !(flags & ACK)) add_out(c, SETTINGS, ACK, 0, NULL, 0);
  if (type == PING && !(flags & ACK)) add_out(c, PING, ACK, 0, bytes, size);
  if (type == WINDOW_UPDATE && !id) { c->window += number_at(bytes); ask_waiting(c); }
  if (type == GOAWAY) { errno = ECONNRESET; stop("the server ends a connection"); }
  if (!s) return;
  if (type == DATA) read_data(c, s, bytes, size, flags);
  if (type == RST_STREAM || flags & END_STREAM) end_stream(c, s, type == RST_STREAM);
}

static int hear(Connection *c) { /* 0 when the connection is closed */
  ssize_t got = recv(c->fd, c->input + c->have, INPUT - c->have, MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return 1;
  if (got <= 0) return 0;
  c->have += (size_t)got;
  size_t at = 0;
  while (c->have - at >= 9) {
    const uint8_t *f = c->input + at;
    size_t size = (size_t)f[0] << 16 | (size_t)f[1] << 8 | f[2];
    if (c->have - at < size + 9) break;
    read_frame(c, f[3], f[4], number_at(f + 5) & 0x7fffffff, f + 9, size);
    at += size + 9;
  }
  memmove(c->input, c->input + at, c->have - at);
  c->have -= at;
  write_out(c);
  return 1;
}

static void run(void) {
  struct epoll_event events[256];
  for (int i = 0; i < connection_count; i++) {
    for (int j = 0; j < stream_count; j++) ask(&connections[i], j);
    write_out(&connections[i]);
  }
  while (now() < end_s || (open_calls && now() < end_s + GRACE_S)) {
    int found = epoll_wait(poll_fd, events, 256, 10);
    for (int i = 0; i < found; i++)
      if (!hear(events[i].data.ptr)) { errno = ECONNRESET; stop("a connection is closed"); }
  }
  broken = open_calls;
}

static void write_answers(const char *name) {
  FILE *file = fopen(name, "wb");
  if (!file) stop(name);
  for (size_t i = 0; i < message_count; i++)
    for (int k = 0; k < messages[i].kind_count; k++) {
      fprintf(file, "%zu %zu\n", i, messages[i].kinds[k].size);
      fwrite(messages[i].kinds[k].bytes, 1, messages[i].kinds[k].size, file);
    }
  if (fclose(file)) stop(name);
}

static int smaller(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double time_ms(double share) { return 1e3 * times[(size_t)(share * (double)(time_count - 1))]; }

int main(int count, char **words) {
  if (count != 9) { fprintf(stderr, "grpc_loop PORT PATH MESSAGES CONNECTIONS STREAMS WARM_S SECONDS ANSWERS\n"); return 2; }
  port = atoi(words[1]); build_heads(words[2]); read_messages(words[3]);
  connection_count = atoi(words[4]); stream_count = atoi(words[5]);
  begin_s = atof(words[6]); end_s = begin_s + atof(words[7]);
  if (connection_count < 1 || connection_count > MOST_CONNECTIONS) return 2;
  if (stream_count < 1 || stream_count > MOST_STREAMS || end_s <= begin_s) return 2;
  if ((poll_fd = epoll_create1(0)) < 0) stop("epoll");
  for (int i = 0; i < connection_count; i++) open_connection(&connections[i]);
  origin = clock_s(CLOCK_MONOTONIC);
  double cpu = clock_s(CLOCK_PROCESS_CPUTIME_ID);
  run();
  cpu = clock_s(CLOCK_PROCESS_CPUTIME_ID) - cpu;
  printf("{\"busy\":%.4f,\"calls\":%ld,\"ok\":%ld,\"failed\":%ld,\"broken\":%ld,\"unlike\":%ld", cpu / now(), calls, ok,
         failed, broken, unlike);
  if (time_count) {
    qsort(times, time_count, sizeof *times, smaller);
    printf(",\"ok_p50_ms\":%.4f,\"ok_p99_ms\":%.4f", time_ms(0.5), time_ms(0.99));
  }
  printf("}\n");
  write_answers(words[8]);
  return 0;
}
