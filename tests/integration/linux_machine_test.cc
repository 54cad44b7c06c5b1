// What meshd sees of real control groups and network namespaces. Needs root.
#include "control/linux_machine.h"

#include <gmock/gmock.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "tests/support/netns.h"

namespace mesh::control {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class LinuxMachineTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    root_.emplace(test::Cgroup::create("mesh"));
    machine_ = LinuxMachine::open(root_->path() + "/workloads").value();
  }

  std::optional<test::Cgroup> root_;
  std::unique_ptr<LinuxMachine> machine_;
};

TEST_F(LinuxMachineTest, AGroupHasTheSameIdsByWhateverPath) {
  const test::Cgroup group = test::Cgroup::create("group");
  const std::string child = group.path() + "/child";
  fs::create_directory(child);
  const auto ids = machine_->look_at_cgroup(group.path()).value();
  const auto of_child = machine_->look_at_cgroup(child).value();
  ASSERT_GE(ids.size(), 3U) << "those of the groups above it, up to the root";
  struct stat status{};
  ASSERT_EQ(::stat(group.path().c_str(), &status), 0);
  EXPECT_EQ(ids.front(), status.st_ino);
  EXPECT_EQ(std::vector(of_child.begin() + 1, of_child.end()), ids);

  char directory[] = "/tmp/linux_machine_test.XXXXXX";
  ASSERT_NE(::mkdtemp(directory), nullptr);
  const std::string link = std::string(directory) + "/link";
  fs::create_directory_symlink(group.path(), link);
  EXPECT_EQ(machine_->look_at_cgroup(link).value(), ids);
  EXPECT_THAT(machine_->look_at_cgroup(directory).error().message, HasSubstr("no control group"));
  fs::remove_all(directory);
  fs::remove(child);
  EXPECT_THAT(machine_->look_at_cgroup(child).value(), testing::IsEmpty()) << "it may come yet";
  EXPECT_THAT(machine_->look_at_cgroup(root_->path()).error().message,
              HasSubstr("of the mesh itself or one above it"));
}

TEST_F(LinuxMachineTest, SeesTheAddressesOfEveryInterfaceOfANamespace) {
  const test::NetNs ns = test::NetNs::create();
  const auto loopback4 = IpAddress::v4(127, 0, 0, 1), own = IpAddress::v4(10, 77, 9, 1);
  const auto loopback6 = IpAddress::parse("::1").value(),
             own6 = IpAddress::parse("fd77::9").value();
  EXPECT_THAT(machine_->addresses_in(ns.fd()).value(),
              testing::UnorderedElementsAre(loopback4, loopback6));
  ns.add_address("lo", "10.77.9.1/32");
  ns.add_address("lo", "fd77::9/128");
  EXPECT_THAT(machine_->addresses_in(ns.fd()).value(),
              testing::UnorderedElementsAre(loopback4, loopback6, own, own6));
  EXPECT_THAT(machine_->node_addresses(), testing::Not(testing::Contains(own)))
      << "this process is where it was";
  const UniqueFd file(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  EXPECT_FALSE(machine_->addresses_in(file.get()));
}

TEST_F(LinuxMachineTest, SaysWhichNamespaceCannotBeOpenedAndWhy) {
  EXPECT_EQ(machine_->open_netns("/run/netns/nobody").error().message,
            "open the network namespace /run/netns/nobody: No such file or directory");
}

}  // namespace
}  // namespace mesh::control
