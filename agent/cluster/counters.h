// Counters of one cluster, as Envoy names them below cluster.<name> (docs:
// configuration/upstream/cluster_manager/cluster_stats.rst). One instance for each worker that uses
// the cluster: that worker writes, any thread reads, readers add the instances up.
#pragma once

#include <string_view>

#include "base/counter.h"

namespace mesh::cluster {

struct Counters {
  // Kept by Limits and Cluster:
  Counter upstream_cx_total, upstream_cx_active, upstream_cx_overflow, upstream_cx_none_healthy;
  Counter upstream_rq_total, upstream_rq_active;
  Counter upstream_rq_pending_total, upstream_rq_pending_active, upstream_rq_pending_overflow;
  Counter upstream_rq_2xx, upstream_rq_3xx, upstream_rq_4xx, upstream_rq_5xx;
  Counter upstream_cx_connect_fail, upstream_rq_timeout, upstream_rq_reset;
  // Kept by the proxy:
  Counter upstream_cx_connect_timeout, upstream_rq_retry, upstream_rq_retry_success;

  // f(name, is_gauge, value) for each.
  template <class F>
  void for_each(F&& f) const {
    f("upstream_cx_total", false, upstream_cx_total.value());
    f("upstream_cx_active", true, upstream_cx_active.value());
    f("upstream_cx_connect_fail", false, upstream_cx_connect_fail.value());
    f("upstream_cx_connect_timeout", false, upstream_cx_connect_timeout.value());
    f("upstream_cx_none_healthy", false, upstream_cx_none_healthy.value());
    f("upstream_cx_overflow", false, upstream_cx_overflow.value());
    f("upstream_rq_total", false, upstream_rq_total.value());
    f("upstream_rq_active", true, upstream_rq_active.value());
    f("upstream_rq_pending_total", false, upstream_rq_pending_total.value());
    f("upstream_rq_pending_active", true, upstream_rq_pending_active.value());
    f("upstream_rq_pending_overflow", false, upstream_rq_pending_overflow.value());
    f("upstream_rq_timeout", false, upstream_rq_timeout.value());
    f("upstream_rq_reset", false, upstream_rq_reset.value());
    f("upstream_rq_retry", false, upstream_rq_retry.value());
    f("upstream_rq_retry_success", false, upstream_rq_retry_success.value());
    f("upstream_rq_2xx", false, upstream_rq_2xx.value());
    f("upstream_rq_3xx", false, upstream_rq_3xx.value());
    f("upstream_rq_4xx", false, upstream_rq_4xx.value());
    f("upstream_rq_5xx", false, upstream_rq_5xx.value());
  }
};

}  // namespace mesh::cluster
