#!/usr/bin/python3
"""What a person sees: the page through the mesh's gateway in headless Chromium. Screenshots stay in build/artifacts/."""

import os
import tempfile
import unittest

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

import bookinfo
import lab

ARTIFACTS = bookinfo.ROOT / "build" / "artifacts"
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
         "--no-proxy-server", "--window-size=1200,900")
BLACK, RED = "rgba(21, 27, 43, 1)", "rgba(217, 45, 32, 1)"


class Browser:
    def __init__(self, profile):
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            os.environ.pop(name, None)
        self.driver = webdriver.Chrome(service=Service("/usr/bin/chromedriver"), options=options)
        self.driver.set_page_load_timeout(30)

    def open(self, url):
        self.driver.get(url)

    def text(self):
        return self.driver.find_element(By.TAG_NAME, "main").text

    def served_by(self):
        return self.driver.find_element(By.ID, "reviews-podname").text

    def stars(self):
        """(text, colour) of each row of stars, as rendered."""
        return [(e.text, e.value_of_css_property("color")) for e in self.driver.find_elements(By.CLASS_NAME, "stars")]

    def sign_in(self, user):
        self.driver.find_element(By.ID, "sign-in-button").click()
        field = self.driver.find_element(By.NAME, "username")
        WebDriverWait(self.driver, 10).until(lambda _: field.is_displayed())
        field.send_keys(user)
        self.driver.find_element(By.NAME, "passwd").send_keys("any")
        self.driver.find_element(By.ID, "sign-in-submit").click()
        WebDriverWait(self.driver, 30).until(lambda d: d.find_elements(By.ID, "user"))
        return self.driver.find_element(By.ID, "user").text

    def sign_out(self):
        self.driver.find_element(By.ID, "sign-out").click()
        WebDriverWait(self.driver, 30).until(lambda d: d.find_elements(By.ID, "sign-in-button"))

    def keep(self, name):
        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(ARTIFACTS / f"{name}.png"))

    def complaints(self):
        return [entry for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def close(self):
        self.driver.quit()


class BrowserTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        lab.clear()
        cls.lab = lab.Lab(lab.Report())
        cls.addClassCleanup(lab.clear)
        cls.lab.start()

    def setUp(self):
        profile = self.enterContext(tempfile.TemporaryDirectory(prefix="chromium-"))
        self.browser = Browser(profile)
        self.addCleanup(self.browser.close)

    def config(self, *files):
        self.lab.config("destination-rules.yaml", *files)
        self.browser.open(lab.URL)

    def test_jason_sees_black_stars_after_he_signs_in_and_others_see_none_or_red_ones(self):
        self.config("virtual-service-reviews-jason-v2.yaml")
        self.assertIn("The Comedy of Errors", self.browser.text())
        self.assertIn("William Shakespeare", self.browser.text())
        self.assertEqual((self.browser.served_by(), self.browser.stars()), ("reviews-v1", []))
        self.browser.keep("1-nobody-v1")
        self.assertEqual(self.browser.sign_in("jason"), "jason")
        self.assertEqual(self.browser.served_by(), "reviews-v2")
        self.assertEqual(self.browser.stars(), [("★★★★★", BLACK), ("★★★★☆", BLACK)])
        self.browser.keep("2-jason-v2")
        self.config("virtual-service-reviews-jason-v2-v3.yaml")
        self.assertEqual(self.browser.served_by(), "reviews-v2")
        self.browser.sign_out()
        self.assertEqual(self.browser.served_by(), "reviews-v3")
        self.assertEqual(self.browser.stars(), [("★★★★★", RED), ("★★★★☆", RED)])
        self.browser.keep("3-nobody-v3")
        self.assertEqual(self.browser.complaints(), [])

    def test_what_is_broken_is_said_and_the_rest_of_the_page_stays(self):
        self.config("virtual-service-reviews-jason-v2-v3.yaml", "ratings-abort-500.yaml", "details-abort-555.yaml")
        self.browser.sign_in("jason")
        self.assertIn(lab.SORRY.format("details"), self.browser.text())
        self.assertEqual(self.browser.text().count(lab.NO_RATINGS), 2)
        self.assertEqual((self.browser.served_by(), self.browser.stars()), ("reviews-v2", []))
        self.browser.keep("4-jason-aborts")
        self.config("virtual-service-reviews-jason-v2-v3.yaml", "ratings-delay-7s.yaml")
        self.assertIn(lab.SORRY.format("reviews"), self.browser.text())
        self.assertIn("William Shakespeare", self.browser.text())
        self.browser.keep("5-jason-delay")
        self.assertEqual(self.browser.complaints(), [])


if __name__ == "__main__":
    unittest.main(verbosity=2)
