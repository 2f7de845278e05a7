/* HTTP load on loopback from one thread: open loop (Poisson arrivals at a rate) or closed loop (as fast as answered).

   open_loop PORT REQUESTS CONNECTIONS SEED RATE:SECONDS [RATE:SECONDS ...]

   REQUESTS holds whole HTTP requests, each after a line with its length in bytes; they are sent in turn. A rate of 0
   means closed loop. Phases follow each other without a pause. A latency counts from the moment at which a request was
   due, so a server that stalls cannot hide the requests that it delayed. Prints one JSON object. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST_CONNECTIONS = 4096, MOST_PHASES = 16, BUFFER = 65536, WINDOWS = 20000 };
static const double WINDOW_S = 0.1, GRACE_S = 5.0;

typedef struct { char *text; size_t size; } Request;
typedef struct { int fd, busy, phase; double due; size_t have; char *buffer; } Connection;
typedef struct { double rate, begin, end; long sent, ok, refused, other, broken; } Phase;
typedef struct { long due, ok, refused, other; double worst; } Window;
typedef struct { double *value; size_t count, room; } Series;

static Request *requests; static size_t request_count, next_request;
static Connection connections[MOST_CONNECTIONS]; static int connection_count, idle[MOST_CONNECTIONS], idle_count;
static Phase phases[MOST_PHASES]; static int phase_count;
static Series ok_times[MOST_PHASES], refused_times[MOST_PHASES];
static Window windows[WINDOWS]; static int window_count;
static double *waiting; static size_t waiting_head, waiting_tail, waiting_room;
static double origin; static unsigned long long state; static int poll_fd, port;

static void stop(const char *why) { fprintf(stderr, "open_loop: %s: %s\n", why, strerror(errno)); exit(1); }

static double clock_s(clockid_t which) {
  struct timespec t; clock_gettime(which, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
static double now(void) { return clock_s(CLOCK_MONOTONIC) - origin; }

static double uniform(void) { /* xorshift64*, in (0, 1] */
  state ^= state >> 12; state ^= state << 25; state ^= state >> 27;
  return ((double)((state * 2685821657736338717ULL) >> 11) + 1.0) / 9007199254740993.0;
}

static void put(Series *s, double value) {
  if (s->count == s->room) {
    s->room = s->room ? 2 * s->room : 4096;
    if (!(s->value = realloc(s->value, s->room * sizeof *s->value))) stop("memory");
  }
  s->value[s->count++] = value;
}

static void read_requests(const char *name) {
  FILE *file = fopen(name, "rb"); size_t size;
  if (!file) stop(name);
  while (fscanf(file, "%zu", &size) == 1 && fgetc(file) == '\n') {
    if (!(requests = realloc(requests, (request_count + 1) * sizeof *requests))) stop("memory");
    Request *r = &requests[request_count++];
    r->size = size;
    if (!(r->text = malloc(size)) || fread(r->text, 1, size, file) != size) stop(name);
  }
  fclose(file);
  if (!request_count) stop("no requests");
}

static void open_connection(Connection *c) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int one = 1;
  if ((c->fd = socket(AF_INET, SOCK_STREAM, 0)) < 0) stop("socket");
  if (connect(c->fd, (struct sockaddr *)&to, sizeof to)) stop("connect");
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  c->busy = 0; c->have = 0;
  struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
  if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &e)) stop("epoll");
}

static Window *window_of(double due) {
  int at = (int)(due / WINDOW_S);
  if (at >= WINDOWS) at = WINDOWS - 1;
  if (at >= window_count) window_count = at + 1;
  return &windows[at];
}

static int phase_of(double due) {
  int p = 0;
  while (p < phase_count - 1 && due >= phases[p].end) p++;
  return p;
}

static void send_on(Connection *c, double due) {
  Request *r = &requests[next_request++ % request_count];
  c->busy = 1; c->due = due; c->have = 0; c->phase = phase_of(due);
  phases[c->phase].sent++; window_of(due)->due++;
  if (send(c->fd, r->text, r->size, MSG_NOSIGNAL) != (ssize_t)r->size) errno = EPIPE; /* told when it is read */
}

static void renew(Connection *c) {
  if (c->busy) phases[c->phase].broken++;
  close(c->fd);
  open_connection(c);
}

static size_t answer_size(Connection *c) { /* 0 while its head is not whole */
  c->buffer[c->have] = 0;
  char *end = strstr(c->buffer, "\r\n\r\n");
  char *length = end ? strcasestr(c->buffer, "\r\ncontent-length:") : NULL;
  if (end && !length) { /* chunked: whole when its last chunk is there */
    char *last = strstr(end, "\r\n0\r\n\r\n");
    return last ? (size_t)(last + 7 - c->buffer) : 0;
  }
  if (!end || !length || length > end) return 0;
  return (size_t)(end + 4 - c->buffer) + (size_t)atol(length + 17);
}

static void answered(Connection *c) {
  double seconds = now() - c->due; int status = atoi(c->buffer + 9);
  Phase *p = &phases[c->phase]; Window *w = window_of(c->due);
  if (status == 200) { p->ok++; w->ok++; put(&ok_times[c->phase], seconds); if (seconds > w->worst) w->worst = seconds; }
  else if (status == 429 || status == 503) { p->refused++; w->refused++; put(&refused_times[c->phase], seconds); }
  else { p->other++; w->other++; }
  c->busy = 0;
}

static int heard(Connection *c) { /* whether the connection is free again */
  ssize_t got = recv(c->fd, c->buffer + c->have, BUFFER - 1 - c->have, MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
  if (got <= 0) { int was = c->busy; renew(c); return was; }
  c->have += (size_t)got;
  size_t need = answer_size(c);
  if (!c->busy || !need || c->have < need) return 0;
  int last = strcasestr(c->buffer, "\r\nconnection: close\r\n") != NULL;
  answered(c);
  if (last) renew(c);
  return 1;
}

static void wait_in_line(double due) {
  if (waiting_tail - waiting_head == waiting_room) {
    size_t count = waiting_tail - waiting_head, room = waiting_room ? 2 * waiting_room : 4096;
    double *grown = malloc(room * sizeof *grown);
    if (!grown) stop("memory");
    for (size_t i = 0; i < count; i++) grown[i] = waiting[(waiting_head + i) % waiting_room];
    free(waiting); waiting = grown; waiting_room = room; waiting_head = 0; waiting_tail = count;
  }
  waiting[waiting_tail++ % waiting_room] = due;
}

static void hand_out(void) {
  while (idle_count && waiting_head < waiting_tail)
    send_on(&connections[idle[--idle_count]], waiting[waiting_head++ % waiting_room]);
}

static double arrive(double due, double end) { /* let all that is due wait in line; return the next moment */
  double t = now();
  while (due <= t && due < end) {
    double rate = phases[phase_of(due)].rate;
    if (rate <= 0) { /* closed loop: whoever is free asks */
      for (; idle_count; ) send_on(&connections[idle[--idle_count]], now());
      return t < phases[phase_of(due)].end ? due = t : phases[phase_of(due)].end;
    }
    wait_in_line(due);
    due -= log(uniform()) / rate;
  }
  return due;
}

static int open_requests(void) { return connection_count - idle_count + (waiting_head < waiting_tail); }

static void run(double end) {
  struct epoll_event events[256]; double due = 0;
  while (now() < end || (open_requests() && now() < end + GRACE_S)) {
    due = arrive(due, end);
    hand_out();
    double t = now();
    int spins = t < end && phases[phase_of(t)].rate > 0 && due - t < 0.002; /* epoll's clock is too coarse for these */
    int found = epoll_wait(poll_fd, events, 256, spins ? 0 : 1);
    for (int i = 0; i < found; i++) {
      Connection *c = events[i].data.ptr;
      if (heard(c)) idle[idle_count++] = (int)(c - connections);
    }
  }
}

static int smaller(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void tell_times(const char *name, Series *s) {
  const double shares[] = {0.5, 0.99, 1.0}; const char *names[] = {"p50", "p99", "max"};
  if (s->count) qsort(s->value, s->count, sizeof *s->value, smaller);
  for (int i = 0; i < 3; i++) {
    if (!s->count) { printf(",\"%s_%s_ms\":null", name, names[i]); continue; }
    size_t at = (size_t)(shares[i] * (double)(s->count - 1));
    printf(",\"%s_%s_ms\":%.4f", name, names[i], 1e3 * s->value[at]);
  }
}

static void tell(double cpu, double wall) {
  printf("{\"busy\":%.4f,\"unanswered\":%d,\"phases\":[", cpu / wall, open_requests());
  for (int i = 0; i < phase_count; i++) {
    Phase *p = &phases[i];
    printf("%s{\"rate\":%g,\"seconds\":%g,\"sent\":%ld,\"ok\":%ld,\"refused\":%ld,\"other\":%ld,\"broken\":%ld",
           i ? "," : "", p->rate, p->end - p->begin, p->sent, p->ok, p->refused, p->other, p->broken);
    tell_times("ok", &ok_times[i]); tell_times("refused", &refused_times[i]);
    printf("}");
  }
  printf("],\"window_s\":%g,\"windows\":[", WINDOW_S);
  for (int i = 0; i < window_count; i++)
    printf("%s[%ld,%ld,%ld,%ld,%.4f]", i ? "," : "", windows[i].due, windows[i].ok, windows[i].refused,
           windows[i].other, 1e3 * windows[i].worst);
  printf("]}\n");
}

int main(int count, char **words) {
  if (count < 6) { fprintf(stderr, "open_loop PORT REQUESTS CONNECTIONS SEED RATE:SECONDS ...\n"); return 2; }
  port = atoi(words[1]); read_requests(words[2]); connection_count = atoi(words[3]);
  state = 88172645463325252ULL + 1000003ULL * (unsigned long long)atol(words[4]);
  if (connection_count < 1 || connection_count > MOST_CONNECTIONS || count - 5 > MOST_PHASES) return 2;
  double end = 0;
  for (int i = 5; i < count; i++) {
    Phase *p = &phases[phase_count++]; double seconds = 0;
    if (sscanf(words[i], "%lf:%lf", &p->rate, &seconds) != 2) return 2;
    p->begin = end; p->end = end += seconds;
  }
  if ((poll_fd = epoll_create1(0)) < 0) stop("epoll");
  for (int i = 0; i < connection_count; i++) {
    if (!(connections[i].buffer = malloc(BUFFER))) stop("memory");
    open_connection(&connections[i]); idle[idle_count++] = i;
  }
  origin = clock_s(CLOCK_MONOTONIC);
  double cpu = clock_s(CLOCK_PROCESS_CPUTIME_ID);
  run(end);
  tell(clock_s(CLOCK_PROCESS_CPUTIME_ID) - cpu, now());
  return 0;
}
