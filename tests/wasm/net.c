// Sockets: a component of the world `net`. As its arguments say:
//   HOST PORT        opens a TCP connection by name, sends "ping\n", prints every address of the name, what comes back, and how it
//                    failed if it did
//   udp HOST PORT    the same with datagrams, again and again until one comes back
//   udp-serve PORT   sends datagrams back to where they came from, and prints them
#include "net.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void block_on(wasi_io_poll_own_pollable_t pollable) {
  wasi_io_poll_method_pollable_block(wasi_io_poll_borrow_pollable(pollable));
  wasi_io_poll_pollable_drop_own(pollable);
}

static void print_address(const wasi_sockets_network_ip_address_t *address) {
  if (address->tag == WASI_SOCKETS_NETWORK_IP_ADDRESS_IPV4) {
    const uint8_t *part = (const uint8_t *)&address->val.ipv4;
    printf("address %d.%d.%d.%d\n", part[0], part[1], part[2], part[3]);
  } else {
    const uint16_t *part = (const uint16_t *)&address->val.ipv6;
    printf("address");
    for (int i = 0; i < 8; i++) printf("%c%x", i ? ':' : ' ', part[i]);
    printf("\n");
  }
}

static bool failed(const char *what, int error) {
  printf("%s failed: error %d\n", what, error);
  return false;
}

static bool resolve(wasi_sockets_instance_network_own_network_t network, const char *host,
                    wasi_sockets_network_ip_address_t *first) {
  wasi_sockets_ip_name_lookup_own_resolve_address_stream_t stream;
  wasi_sockets_ip_name_lookup_error_code_t error;
  net_string_t name = {(uint8_t *)host, strlen(host)};
  if (!wasi_sockets_ip_name_lookup_resolve_addresses(wasi_sockets_network_borrow_network(network), &name, &stream, &error))
    return failed("resolve", error);
  for (int found = 0;;) {
    wasi_sockets_ip_name_lookup_option_ip_address_t address;
    wasi_sockets_ip_name_lookup_borrow_resolve_address_stream_t borrowed =
        wasi_sockets_ip_name_lookup_borrow_resolve_address_stream(stream);
    if (wasi_sockets_ip_name_lookup_method_resolve_address_stream_resolve_next_address(borrowed, &address, &error)) {
      if (!address.is_some) return found > 0;
      print_address(&address.val);
      if (!found++) *first = address.val;
    } else if (error == WASI_SOCKETS_NETWORK_ERROR_CODE_WOULD_BLOCK) {
      block_on(wasi_sockets_ip_name_lookup_method_resolve_address_stream_subscribe(borrowed));
    } else {
      return failed("resolve", error);
    }
  }
}

static bool talk(wasi_sockets_instance_network_own_network_t network, const wasi_sockets_network_ip_address_t *address,
                 uint16_t port) {
  wasi_sockets_tcp_error_code_t error;
  wasi_sockets_tcp_own_tcp_socket_t socket;
  bool v4 = address->tag == WASI_SOCKETS_NETWORK_IP_ADDRESS_IPV4;
  if (!wasi_sockets_tcp_create_socket_create_tcp_socket(
          v4 ? WASI_SOCKETS_NETWORK_IP_ADDRESS_FAMILY_IPV4 : WASI_SOCKETS_NETWORK_IP_ADDRESS_FAMILY_IPV6, &socket, &error))
    return failed("socket", error);
  wasi_sockets_tcp_borrow_tcp_socket_t borrowed = wasi_sockets_tcp_borrow_tcp_socket(socket);
  wasi_sockets_tcp_ip_socket_address_t to;
  if (v4) {
    to.tag = WASI_SOCKETS_NETWORK_IP_SOCKET_ADDRESS_IPV4;
    to.val.ipv4.port = port;
    to.val.ipv4.address = address->val.ipv4;
  } else {
    memset(&to, 0, sizeof to);
    to.tag = WASI_SOCKETS_NETWORK_IP_SOCKET_ADDRESS_IPV6;
    to.val.ipv6.port = port;
    to.val.ipv6.address = address->val.ipv6;
  }
  if (!wasi_sockets_tcp_method_tcp_socket_start_connect(borrowed, wasi_sockets_network_borrow_network(network), &to, &error))
    return failed("connect", error);
  wasi_sockets_tcp_tuple2_own_input_stream_own_output_stream_t streams;
  for (;;) {
    block_on(wasi_sockets_tcp_method_tcp_socket_subscribe(borrowed));
    if (wasi_sockets_tcp_method_tcp_socket_finish_connect(borrowed, &streams, &error)) break;
    if (error != WASI_SOCKETS_NETWORK_ERROR_CODE_WOULD_BLOCK) return failed("connect", error);
  }
  wasi_io_streams_stream_error_t broken;
  net_list_u8_t ping = {(uint8_t *)"ping\n", 5}, got;
  wasi_io_streams_method_output_stream_blocking_write_and_flush(wasi_io_streams_borrow_output_stream(streams.f1), &ping, &broken);
  while (wasi_io_streams_method_input_stream_blocking_read(wasi_io_streams_borrow_input_stream(streams.f0), 4096, &got, &broken)) {
    printf("received %.*s\n", (int)got.len, got.ptr);
    if (got.len && got.ptr[got.len - 1] == '\n') break;
  }
  return true;
}

static wasi_sockets_udp_ip_socket_address_t udp_address(const wasi_sockets_network_ip_address_t *address, uint16_t port) {
  wasi_sockets_udp_ip_socket_address_t to;
  memset(&to, 0, sizeof to);
  if (address->tag == WASI_SOCKETS_NETWORK_IP_ADDRESS_IPV4) {
    to.tag = WASI_SOCKETS_NETWORK_IP_SOCKET_ADDRESS_IPV4;
    to.val.ipv4.port = port;
    to.val.ipv4.address = address->val.ipv4;
  } else {
    to.tag = WASI_SOCKETS_NETWORK_IP_SOCKET_ADDRESS_IPV6;
    to.val.ipv6.port = port;
    to.val.ipv6.address = address->val.ipv6;
  }
  return to;
}

typedef wasi_sockets_udp_tuple2_own_incoming_datagram_stream_own_outgoing_datagram_stream_t datagrams_t;

// A socket of the address' family, bound to a port of every address.
static bool udp_socket(wasi_sockets_instance_network_own_network_t network, const wasi_sockets_network_ip_address_t *like,
                       uint16_t port, datagrams_t *streams) {
  wasi_sockets_udp_error_code_t error;
  wasi_sockets_udp_own_udp_socket_t socket;
  uint8_t family = like->tag == WASI_SOCKETS_NETWORK_IP_ADDRESS_IPV4 ? WASI_SOCKETS_NETWORK_IP_ADDRESS_FAMILY_IPV4
                                                                     : WASI_SOCKETS_NETWORK_IP_ADDRESS_FAMILY_IPV6;
  if (!wasi_sockets_udp_create_socket_create_udp_socket(family, &socket, &error)) return failed("socket", error);
  wasi_sockets_udp_borrow_udp_socket_t borrowed = wasi_sockets_udp_borrow_udp_socket(socket);
  wasi_sockets_network_ip_address_t any = {.tag = like->tag};
  wasi_sockets_udp_ip_socket_address_t local = udp_address(&any, port);
  if (!wasi_sockets_udp_method_udp_socket_start_bind(borrowed, wasi_sockets_network_borrow_network(network), &local, &error) ||
      !wasi_sockets_udp_method_udp_socket_finish_bind(borrowed, &error))
    return failed("bind", error);
  if (!wasi_sockets_udp_method_udp_socket_stream(borrowed, NULL, streams, &error)) return failed("stream", error);
  return true;
}

static bool udp_send(datagrams_t *streams, const net_list_u8_t *data, const wasi_sockets_udp_ip_socket_address_t *to) {
  wasi_sockets_udp_error_code_t error;
  wasi_sockets_udp_borrow_outgoing_datagram_stream_t out = wasi_sockets_udp_borrow_outgoing_datagram_stream(streams->f1);
  uint64_t may;
  while (wasi_sockets_udp_method_outgoing_datagram_stream_check_send(out, &may, &error) && !may)
    block_on(wasi_sockets_udp_method_outgoing_datagram_stream_subscribe(out));
  wasi_sockets_udp_outgoing_datagram_t datagram = {.data = *data, .remote_address = {.is_some = true, .val = *to}};
  wasi_sockets_udp_list_outgoing_datagram_t list = {&datagram, 1};
  return wasi_sockets_udp_method_outgoing_datagram_stream_send(out, &list, &may, &error) || failed("send", error);
}

// Waits for datagrams, for so many milliseconds or, with none, for ever.
static bool udp_receive(datagrams_t *streams, uint64_t milliseconds, wasi_sockets_udp_list_incoming_datagram_t *got) {
  wasi_sockets_udp_error_code_t error;
  wasi_sockets_udp_borrow_incoming_datagram_stream_t in = wasi_sockets_udp_borrow_incoming_datagram_stream(streams->f0);
  for (bool waited = false;; waited = true) {
    if (!wasi_sockets_udp_method_incoming_datagram_stream_receive(in, 16, got, &error)) return failed("receive", error);
    if (got->len || (waited && milliseconds)) return true;
    wasi_io_poll_own_pollable_t arrival = wasi_sockets_udp_method_incoming_datagram_stream_subscribe(in);
    if (!milliseconds) {
      block_on(arrival);
      continue;
    }
    wasi_io_poll_own_pollable_t clock = wasi_clocks_monotonic_clock_subscribe_duration(milliseconds * 1000000);
    wasi_io_poll_borrow_pollable_t both[2] = {wasi_io_poll_borrow_pollable(arrival), wasi_io_poll_borrow_pollable(clock)};
    wasi_io_poll_list_borrow_pollable_t list = {both, 2};
    net_list_u32_t ready;
    wasi_io_poll_poll(&list, &ready);
    net_list_u32_free(&ready);
    wasi_io_poll_pollable_drop_own(arrival);
    wasi_io_poll_pollable_drop_own(clock);
  }
}

static bool udp_ask(wasi_sockets_instance_network_own_network_t network, const wasi_sockets_network_ip_address_t *address,
                    uint16_t port) {
  datagrams_t streams;
  if (!udp_socket(network, address, 0, &streams)) return false;
  wasi_sockets_udp_ip_socket_address_t to = udp_address(address, port);
  net_list_u8_t ping = {(uint8_t *)"ping", 4};
  for (int i = 0; i < 60; i++) {
    wasi_sockets_udp_list_incoming_datagram_t got;
    if (!udp_send(&streams, &ping, &to) || !udp_receive(&streams, 500, &got)) return false;
    if (!got.len) continue;
    printf("received %.*s\n", (int)got.ptr[0].data.len, got.ptr[0].data.ptr);
    return true;
  }
  puts("nothing came back");
  return false;
}

static bool udp_serve(wasi_sockets_instance_network_own_network_t network, uint16_t port) {
  wasi_sockets_network_ip_address_t four = {.tag = WASI_SOCKETS_NETWORK_IP_ADDRESS_IPV4};
  datagrams_t streams;
  if (!udp_socket(network, &four, port, &streams)) return false;
  puts("serving");
  for (;;) {
    wasi_sockets_udp_list_incoming_datagram_t got;
    if (!udp_receive(&streams, 0, &got)) return false;
    for (size_t i = 0; i < got.len; i++) {
      printf("got %.*s\n", (int)got.ptr[i].data.len, got.ptr[i].data.ptr);
      if (!udp_send(&streams, &got.ptr[i].data, &got.ptr[i].remote_address)) return false;
    }
    wasi_sockets_udp_list_incoming_datagram_free(&got);
  }
}

static char *argument(const net_list_string_t *args, size_t index) {
  return strndup((char *)args->ptr[index].ptr, args->ptr[index].len);
}

bool exports_wasi_cli_run_run(void) {
  net_list_string_t args;
  wasi_cli_environment_get_arguments(&args);
  if (args.len < 3) {
    puts("usage: net [udp] HOST PORT, net udp-serve PORT");
    return false;
  }
  setvbuf(stdout, NULL, _IOLBF, 0);
  char *host = argument(&args, args.len - 2);
  uint16_t port = (uint16_t)atoi(argument(&args, args.len - 1));
  wasi_sockets_instance_network_own_network_t network = wasi_sockets_instance_network_instance_network();
  if (!strcmp(host, "udp-serve")) return udp_serve(network, port);
  wasi_sockets_network_ip_address_t address;
  bool well = resolve(network, host, &address) &&
              (args.len > 3 ? udp_ask(network, &address, port) : talk(network, &address, port));
  fflush(stdout);
  return well;
}
