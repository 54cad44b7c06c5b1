// ListNode: a link of a circular doubly linked list that allocates nothing. A node leaves its list
// when it is destroyed; the list itself is a node (its sentinel).
#pragma once

namespace mesh::net {

class ListNode {
 public:
  ListNode() = default;
  ListNode(const ListNode&) = delete;
  ListNode& operator=(const ListNode&) = delete;
  ~ListNode() { unlink(); }

  bool is_linked() const { return next_ != this; }
  void unlink() {
    prev_->next_ = next_;
    next_->prev_ = prev_;
    prev_ = next_ = this;
  }
  // Of a sentinel:
  bool is_empty() const { return next_ == this; }
  ListNode* front() const { return next_; }
  ListNode* back() const { return prev_; }
  void push_back(ListNode& node) {
    node.unlink();
    node.prev_ = prev_;
    node.next_ = this;
    prev_->next_ = &node;
    prev_ = &node;
  }
  // Takes over every node of `other`, behind its own.
  void splice_back(ListNode& other) {
    if (other.is_empty()) return;
    other.next_->prev_ = prev_;
    other.prev_->next_ = this;
    prev_->next_ = other.next_;
    prev_ = other.prev_;
    other.prev_ = other.next_ = &other;
  }
  ListNode* next() const { return next_; }

 private:
  ListNode* prev_ = this;
  ListNode* next_ = this;
};

}  // namespace mesh::net
